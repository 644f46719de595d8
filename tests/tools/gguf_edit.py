"""Finds its way through a GGUF file's header, so that tests can damage it at a chosen place."""

import struct

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


class Header:
    """Where things stand in the file: `values` key -> (offset, type), `tensors` name -> dict of offsets."""

    def __init__(self, data):
        self.data = data
        assert data[:4] == b"GGUF"
        tensor_count, value_count = struct.unpack_from("<QQ", data, 8)
        self.at = 24
        self.values, self.tensors = {}, {}
        for _ in range(value_count):
            key = self.string()
            kind = self.number("<I", 4)
            self.values[key] = (self.at, kind)
            self.skip(kind)
        for _ in range(tensor_count):
            name_at = self.at + 8
            name = self.string()
            dimensions = self.number("<I", 4)
            self.at += 8 * dimensions
            self.tensors[name] = {"name_at": name_at, "type_at": self.at, "offset": struct.unpack_from("<Q", data, self.at + 4)[0]}
            self.at += 12
        alignment = 32
        if "general.alignment" in self.values:
            alignment = struct.unpack_from("<I", data, self.values["general.alignment"][0])[0]
        self.data_start = (self.at + alignment - 1) // alignment * alignment

    def number(self, form, size):
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += size
        return value

    def string(self):
        size = self.number("<Q", 8)
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8")

    def skip(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            element = self.number("<I", 4)
            for _ in range(self.number("<Q", 8)):
                self.skip(element)
        else:
            self.at += SCALAR_BYTES[kind]


def damaged(path, change):
    """The file's bytes after change(header, bytearray)."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    change(Header(bytes(data)), data)
    return bytes(data)


def other_architecture(header, data):
    at, kind = header.values["general.architecture"]
    assert kind == STRING
    size = struct.unpack_from("<Q", data, at)[0]
    data[at + 8 : at + 8 + size] = b"mamba9999999"[:size]


def rename_tensor(name):
    def change(header, data):
        at = header.tensors[name]["name_at"]
        data[at : at + 4] = b"gone"

    return change


def set_type(name, block_type):
    def change(header, data):
        struct.pack_into("<I", data, header.tensors[name]["type_at"], block_type)

    return change


def cut_inside(name, bytes_kept):
    """Drops everything from `bytes_kept` bytes into the tensor on."""

    def change(header, data):
        del data[header.data_start + header.tensors[name]["offset"] + bytes_kept :]

    return change
