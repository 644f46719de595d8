// Command line -> Options, driven by the rows of options.cc. Mistakes are collected, so that a user sees all
// of them at once; nothing is executed while there is one.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "tools/foreign_options.h"
#include "tools/names.h"
#include "tools/options.h"

namespace stoker {

namespace {

bool is_switch(const OptionRow& option) { return std::holds_alternative<bool Options::*>(option.field); }
bool takes(const OptionRow& option, Command command) {
  return (option.commands & static_cast<u32>(command)) != 0;
}

const OptionRow* find_option(Command command, std::string_view name) {
  for (const OptionRow& option : option_rows()) {
    if (takes(option, command) && has_name(option.names, name)) return &option;
  }
  return nullptr;
}

std::string commands_that_take(std::string_view name) {
  std::string list;
  for (const CommandRow& command : command_rows()) {
    if (find_option(command.command, name) != nullptr)
      list += fmt::format("{}stoker {}", list.empty() ? "" : ", ", command.name);
  }
  return list;
}

bool looks_like_option(std::string_view word) {
  return word.size() > 1 && word[0] == '-' && word[1] != ' ' && !(word[1] >= '0' && word[1] <= '9') &&
         word[1] != '.';
}

bool parse_number(const std::string& text, f64& value) {
  char* end = nullptr;
  errno = 0;
  value = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && errno == 0 && std::isfinite(value) &&
         text.find_first_of("xX ") == std::string::npos;
}

bool parse_integer(const std::string& text, i64& value) {
  char* end = nullptr;
  errno = 0;
  value = std::strtoll(text.c_str(), &end, 10);
  return !text.empty() && text[0] != ' ' && *end == '\0' && errno == 0;
}

bool is_choice(std::string_view choices, std::string_view value) {
  size_t at = 0;
  while (at <= choices.size()) {
    size_t bar = std::min(choices.find('|', at), choices.size());
    if (choices.substr(at, bar - at) == value) return true;
    at = bar + 1;
  }
  return false;
}

class Parser {
 public:
  explicit Parser(std::span<const std::string> arguments) : arguments_(arguments) {}

  std::vector<std::string> apply(Command command, std::span<const Setting> settings, Options& options) {
    result_.command = command;
    result_.options = options;
    for (const Setting& setting : settings) {
      std::string name = "--" + setting.name;
      const OptionRow* found = find_option(command, name);
      if (found == nullptr || is_switch(*found)) {
        problem("{}: no setting of `stoker {}`", setting.name, row(command).name);
      } else if (std::find(options.given.begin(), options.given.end(), found->names) == options.given.end()) {
        set(*found, setting.name, setting.value);
      }
    }
    if (result_.problems.empty()) result_.problems = validate(command, result_.options);
    options = std::move(result_.options);
    return std::move(result_.problems);
  }

  CommandLine parse() {
    if (arguments_.empty()) {
      result_.action = CommandLine::Action::help;
    } else {
      first_word();
    }
    return std::move(result_);
  }

 private:
  void first_word() {
    const std::string& word = arguments_[0];
    if (word == "--help" || word == "-h") {
      result_.action = CommandLine::Action::help;
    } else if (word == "--version" || word == "version") {
      result_.action = CommandLine::Action::version;
    } else if (word == "help") {
      result_.action = CommandLine::Action::help;
      if (arguments_.size() > 1) result_.command = find_command(arguments_[1]);
    } else if (looks_like_option(word)) {
      problem("{}: a command comes first, as in `stoker run {} ...`; `stoker --help` lists them", word, word);
    } else {
      result_.command = find_command(word);
      if (result_.command != Command::none) options();
    }
  }

  Command find_command(std::string_view word) {
    std::vector<std::string_view> names;
    for (const CommandRow& command : command_rows()) {
      if (command.name == word) return command.command;
      names.push_back(command.name);
    }
    std::string_view near = nearest(word, names);
    if (near.empty()) {
      problem("{}: no such command; `stoker --help` lists them", word);
    } else {
      problem("{}: no such command; did you mean `stoker {}`?", word, near);
    }
    return Command::none;
  }

  void options() {
    for (at_ = 1; at_ < arguments_.size(); ++at_) {
      const std::string& word = arguments_[at_];
      if (word == "--help" || word == "-h") {
        result_.action = CommandLine::Action::help;
        result_.problems.clear();
        return;
      }
      if (looks_like_option(word)) {
        option(word);
      } else {
        positional(word);
      }
    }
    if (result_.problems.empty()) result_.problems = validate(result_.command, result_.options);
  }

  void positional(const std::string& word) {
    result_.options.positional.push_back(word);
    if (result_.command == Command::inspect && result_.options.model.empty()) {
      result_.options.model = word;
    } else if (result_.command == Command::trace) {
      // what to do, and the file: validate() looks at them
    } else if (result_.command == Command::run) {
      problem("{}: not an option; a prompt is given as -p \"{}\"", word, word);
    } else {
      problem("{}: not an option of `stoker {}`", word, row(result_.command).name);
    }
  }

  void option(const std::string& word) {
    size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    const OptionRow* found = find_option(result_.command, name);
    if (found != nullptr) result_.options.given.push_back(found->names);
    if (found == nullptr) {
      unknown(name, equals != std::string::npos);
    } else if (is_switch(*found)) {
      if (equals != std::string::npos) problem("{}: takes no value", name);
      result_.options.*std::get<bool Options::*>(found->field) = true;
    } else if (equals != std::string::npos) {
      set(*found, name, word.substr(equals + 1));
    } else if (at_ + 1 >= arguments_.size()) {
      problem("{}: needs a value: {} {}", name, name, found->metavar);
    } else if (find_option(result_.command, arguments_[at_ + 1]) != nullptr) {
      problem("{}: needs a value, and {} is an option; write {}={} if it is meant", name, arguments_[at_ + 1],
              name, arguments_[at_ + 1]);
    } else {
      set(*found, name, arguments_[++at_]);
    }
  }

  void unknown(const std::string& name, bool has_value) {
    std::string others = commands_that_take(name);
    const ForeignOption* foreign = find_foreign_option(name);
    bool value_follows = !has_value && at_ + 1 < arguments_.size() && !looks_like_option(arguments_[at_ + 1]);
    if (!others.empty()) {
      problem("{}: an option of {}, not of `stoker {}`", name, others, row(result_.command).name);
      if (value_follows) ++at_;  // not a second mistake
    } else if (foreign != nullptr) {
      problem("{}: {}", name, foreign->advice);
      if (value_follows) ++at_;
    } else {
      std::vector<std::string_view> names;
      for (const OptionRow& option : option_rows()) {
        if (!takes(option, result_.command)) continue;
        for (std::string_view n : split_names(option.names)) names.push_back(n);
      }
      std::string_view near = nearest(name, names);
      std::string_view command = row(result_.command).name;
      if (near.empty()) {
        problem("{}: no such option; `stoker {} --help` lists them", name, command);
      } else {
        problem("{}: no such option; did you mean {}?", name, near);
      }
      if (value_follows) ++at_;
    }
  }

  void set(const OptionRow& option, const std::string& name, const std::string& value) {
    std::visit([&](auto field) { set_field(option, name, value, field); }, option.field);
  }

  void set_field(const OptionRow&, const std::string&, const std::string&, bool Options::*) {}

  void set_field(const OptionRow& option, const std::string& name, const std::string& value,
                 std::string Options::*field) {
    bool has_choices = option.metavar.find('|') != std::string_view::npos &&
                       option.metavar.find('/') == std::string_view::npos;
    if (has_choices && !is_choice(option.metavar, value))
      problem("{} {}: must be one of {}", name, value, option.metavar);
    if (value.empty()) problem("{}: the value is empty", name);
    result_.options.*field = value;
  }

  void set_field(const OptionRow& option, const std::string& name, const std::string& value,
                 i64 Options::*field) {
    i64 number = 0;
    if (!parse_integer(value, number)) {
      problem("{} {}: must be a whole number", name, value);
    } else if (in_range(option, name, value, static_cast<f64>(number))) {
      result_.options.*field = number;
    }
  }

  void set_field(const OptionRow& option, const std::string& name, const std::string& value,
                 f64 Options::*field) {
    f64 number = 0;
    if (!parse_number(value, number)) {
      problem("{} {}: must be a number", name, value);
    } else if (in_range(option, name, value, number)) {
      result_.options.*field = number;
    }
  }

  void set_field(const OptionRow&, const std::string& name, const std::string& value,
                 ByteSize Options::*field) {
    i64 bytes = 0;
    if (parse_byte_size(value, bytes)) {
      (result_.options.*field).bytes = bytes;
    } else {
      problem("{} {}: must be a size with a unit, such as 100G, 8GiB or 512M", name, value);
    }
  }

  bool in_range(const OptionRow& option, const std::string& name, const std::string& text, f64 value) {
    if (option.min >= option.max || (value >= option.min && value <= option.max)) return true;
    problem("{} {}: must be from {} to {}", name, text, option.min, option.max);
    return false;
  }

  template <class... Args>
  void problem(fmt::format_string<Args...> text, Args&&... args) {
    result_.problems.push_back(fmt::format(text, std::forward<Args>(args)...));
  }

  std::span<const std::string> arguments_;
  size_t at_ = 0;
  CommandLine result_;
};

std::string default_text(const OptionRow& option) {
  static const Options defaults;
  if (auto* integer = std::get_if<i64 Options::*>(&option.field))
    return fmt::format("{}", defaults.*(*integer));
  if (auto* number = std::get_if<f64 Options::*>(&option.field))
    return fmt::format("{}", defaults.*(*number));
  if (auto* text = std::get_if<std::string Options::*>(&option.field)) return defaults.*(*text);
  return "";
}

}  // namespace

CommandLine parse_command_line(std::span<const std::string> arguments) { return Parser(arguments).parse(); }

std::vector<std::string> apply_settings(Command command, std::span<const Setting> settings, Options& options) {
  return Parser({}).apply(command, settings, options);
}

bool parse_byte_size(std::string_view text, i64& bytes) {
  size_t digits = text.find_first_not_of("0123456789.");
  if (digits == 0 || digits == std::string_view::npos) return false;
  f64 number = 0;
  if (!parse_number(std::string(text.substr(0, digits)), number)) return false;
  std::string unit(text.substr(digits));
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](char c) { return static_cast<char>(c >= 'a' ? c - 'a' + 'A' : c); });
  size_t power = std::string_view("BKMGT").find(unit[0]);
  if (power == std::string_view::npos) return false;
  std::string rest = unit.substr(1);
  bool decimal = power > 0 && rest == "B";
  if (!rest.empty() && !decimal && !(power > 0 && rest == "IB")) return false;
  f64 value = number * std::pow(decimal ? 1000.0 : 1024.0, static_cast<f64>(power));
  if (value < 1 || value > 9e18) return false;
  bytes = static_cast<i64>(value);
  return true;
}

bool parse_byte_sizes(std::string_view text, std::vector<i64>& bytes) {
  bytes.clear();
  for (;;) {
    size_t comma = text.find(',');
    std::string_view one = text.substr(0, comma);
    i64 size = 0;
    if (one != "0" && !parse_byte_size(one, size)) return false;
    bytes.push_back(size);
    if (comma == std::string_view::npos) return true;
    text.remove_prefix(comma + 1);
  }
}

bool parse_ram_range(std::string_view text, i64& from, i64& to) {
  size_t dots = text.find("..");
  return dots != std::string_view::npos && parse_byte_size(text.substr(0, dots), from) &&
         parse_byte_size(text.substr(dots + 2), to) && from < to;
}

bool parse_expert_groups(std::string_view text, i64& groups, i64& used) {
  size_t slash = text.find('/');
  if (slash == std::string_view::npos) return false;
  return parse_integer(std::string(text.substr(0, slash)), groups) &&
         parse_integer(std::string(text.substr(slash + 1)), used) && used >= 1 && used <= groups;
}

std::string overview_help() {
  std::string text =
      "stoker runs DeepSeek-V3-style mixture-of-experts models whose experts stream from disk under a memory "
      "budget.\n\n"
      "  stoker COMMAND [options]\n\n";
  for (const CommandRow& command : command_rows())
    text += fmt::format("  {:<10}{}\n", command.name, command.summary);
  text +=
      "\n  stoker help COMMAND, stoker COMMAND --help   its options\n"
      "  stoker --version\n\n"
      "A model larger than memory: stoker run -m MODEL-00001-of-00005.gguf --ram 100G -p \"Why is the sky "
      "blue?\"\n";
  return text;
}

std::string command_help(Command command) {
  const CommandRow& about = row(command);
  std::string text = fmt::format("stoker {} {}\n{}\n\n", about.name, about.usage, about.summary);
  for (const OptionRow& option : option_rows()) {
    if (!takes(option, command)) continue;
    std::string left =
        fmt::format("  {}{}{}", option.names, option.metavar.empty() ? "" : " ", option.metavar);
    std::string initial = default_text(option);
    std::string right(option.help);
    if (!initial.empty()) right += fmt::format(" [{}]", initial);
    if (left.size() > 33) left += fmt::format("\n{:<34}", "");
    text += fmt::format("{:<34}{}\n", left, right);
  }
  return text + fmt::format("\n{}\n", about.details);
}

}  // namespace stoker
