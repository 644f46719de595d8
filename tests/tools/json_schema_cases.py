"""JSON Schema for tests: a validator of what stoker supports, and random schemas with texts that cannot grow without limit."""

import json
import re


def resolve(root, reference):
    node = root
    for part in reference[2:].split("/") if len(reference) > 1 else []:
        node = node[part]
    return node


def is_type(value, name):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str),
            "boolean": isinstance(value, bool), "null": value is None, "number": number,
            "integer": number and float(value).is_integer()}[name]


def same(a, b):
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def problems(value, schema, root, path="$"):
    """What is wrong with `value`, as a list of texts."""
    if isinstance(schema, bool):
        return [] if schema else [path + ": nothing is valid"]
    found = []

    def check(good, what):
        if not good:
            found.append("%s: %s, but is %r" % (path, what, value))

    if "$ref" in schema:
        found += problems(value, resolve(root, schema["$ref"]), root, path)
    types = schema.get("type")
    if types is not None:
        check(any(is_type(value, t) for t in ([types] if isinstance(types, str) else types)), "type %s" % types)
    if "const" in schema:
        check(same(value, schema["const"]), "const %r" % schema["const"])
    if "enum" in schema:
        check(any(same(value, e) for e in schema["enum"]), "enum")
    for sub in schema.get("allOf", []):
        found += problems(value, sub, root, path)
    if "anyOf" in schema:
        check(any(not problems(value, s, root) for s in schema["anyOf"]), "anyOf")
    if "oneOf" in schema:
        check(sum(not problems(value, s, root) for s in schema["oneOf"]) == 1, "oneOf")
    if is_type(value, "number"):
        check(value >= schema.get("minimum", value), "minimum")
        check(value <= schema.get("maximum", value), "maximum")
        check("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"], "exclusiveMinimum")
        check("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"], "exclusiveMaximum")
    if isinstance(value, str):
        check(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)), "length")
        check("pattern" not in schema or re.search(schema["pattern"], value), "pattern")
        check("format" not in schema or re.fullmatch(FORMATS[schema["format"]], value), "format")
    if isinstance(value, list):
        check(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)), "number of items")
        if schema.get("uniqueItems"):
            check(len({json.dumps(item, sort_keys=True) for item in value}) == len(value), "uniqueItems")
        first = schema.get("prefixItems", [])
        for i, item in enumerate(value):
            found += problems(item, first[i] if i < len(first) else schema.get("items", True), root, "%s[%d]" % (path, i))
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name in schema.get("required", []):
            check(name in value, "required %s" % name)
        for name, item in value.items():
            found += problems(item, known.get(name, schema.get("additionalProperties", True)), root, "%s.%s" % (path, name))
    return found


FORMATS = {"email": r"[a-z0-9._+-]+@[a-z0-9.-]+\.[a-z]+", "ipv4": r"((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}", "uuid": r"[0-9a-fA-F-]{36}",
           "ipv6": r"([0-9a-fA-F]{1,4}(:|$)){8}", "hostname": r"[a-z0-9](-?[a-z0-9])*(\.[a-z0-9](-?[a-z0-9])*)*", "uri": r"https?://[a-z0-9.-]+(/\S*)?",
           "duration": r"P(\d+W|\d+D(T\d+H)?|T\d+[HMS])", "date": r"\d{4}-\d\d-\d\d", "time": r"\d\d:\d\d:\d\d(\.\d+)?Z",
           "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"}
PATTERNS = [r"^[a-z]{2,6}$", r"^\d{3}-\d{4}$", r"^(red|green|blue) [0-9]?$", r'^"\w{1,3}\\$', r"^[^a-z]{1,4}$", r"^(?:ab?|c+d){1,2}$"]
NAMES = ["name", "age", "a b", 'quo"te', "é", "items", "na", "x-y"]


def scalar(rng):
    kind = rng.randrange(9)
    if kind == 0:
        low = rng.randint(-2000, 2000)
        return {"type": "integer", "minimum": low, "maximum": low + rng.choice([0, 3, 70, 5000])}
    if kind == 1:
        return {"type": "integer", rng.choice(["exclusiveMinimum", "exclusiveMaximum", "minimum", "maximum"]): rng.randint(-50, 50)}
    if kind == 2:
        low = rng.randint(-20, 20)
        return {"type": "number", "minimum": low, rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randint(1, 9)}
    if kind == 3:
        least = rng.randrange(4)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(8)}
    if kind == 4:
        out = {"type": "string", "pattern": rng.choice(PATTERNS)}
        if rng.random() < 0.3:
            return {"type": "string", "format": rng.choice(sorted(FORMATS))}
        if rng.random() < 0.6:  # with a length that some texts of the pattern have
            return {**out, **rng.choice([{"minLength": 1}, {"maxLength": 12}, {"minLength": 2, "maxLength": 9}])}
        return out
    if kind == 5:
        return {"enum": rng.sample(["a", "b\n", 1, 2.5, None, True, [1, {"k": "v"}], {}], rng.randint(1, 4))}
    if kind == 6:
        return {"const": rng.choice(["fixed", 0, False, {"deep": ["é"]}])}
    if kind == 7 and rng.random() < 0.4:
        values = rng.sample(["x", "y", 7, None, True, "é"], rng.randint(2, 5))
        return {"type": "array", "items": {"enum": values}, "uniqueItems": True, "minItems": rng.randrange(2), "maxItems": rng.randint(2, 6)}
    if kind == 7:
        return {"type": rng.sample(["boolean", "null", "integer"], 2), "description": "one of two"}
    return {"type": rng.choice(["boolean", "null", "integer", "number"])}


def schema(rng, depth):
    if depth == 0:
        return scalar(rng)
    kind = rng.randrange(8)
    if kind <= 2:
        names = rng.sample(NAMES, rng.randrange(5))
        out = {"type": "object", "properties": {n: schema(rng, depth - 1) for n in names},
               "required": [n for n in names if rng.random() < 0.6]}
        if names and rng.random() < 0.5:
            out["additionalProperties"] = False
        if not names:
            out["additionalProperties"] = False
        return out
    if kind <= 4:
        least = rng.randrange(3)
        out = {"type": "array", "items": schema(rng, depth - 1), "minItems": least, "maxItems": least + rng.randrange(3)}
        if rng.random() < 0.3:
            out["prefixItems"] = [schema(rng, depth - 1) for _ in range(rng.randint(1, 2))]
            out["maxItems"] = max(out["maxItems"], 3)
        return out
    if kind == 5:
        return {"anyOf": [schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == 6:
        return {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "boolean"}, {"type": "array", "items": scalar(rng), "maxItems": 2}]}
    return {"allOf": [{"type": "object", "properties": {"p": scalar(rng)}, "required": ["p"]},
                      {"properties": {"q": schema(rng, depth - 1)}, "required": ["q"]}]}


def random_schema(rng):
    out = schema(rng, rng.randint(0, 3))
    if rng.random() < 0.2:  # a chain that ends where it likes
        out = {"type": "object", "properties": {"value": out, "list": {"$ref": "#/$defs/link"}}, "required": ["list"], "$defs": {
            "link": {"type": "object", "properties": {"v": scalar(rng), "next": {"$ref": "#/$defs/link"}}, "required": ["v"],
                     "additionalProperties": False}}}
        # References are from the root, so what is inside stays as it is.
    return out
