#include "tools/options.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "scheduler/policy/make_policy.h"
#include "tools/names.h"

using namespace stoker;

namespace {

CommandLine parse(std::vector<std::string> words) { return parse_command_line(words); }

std::string first_problem(std::vector<std::string> words) {
  CommandLine line = parse(std::move(words));
  return line.problems.empty() ? "" : line.problems[0];
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

}  // namespace

TEST_CASE("values reach their fields, with space or equals sign") {
  CommandLine line = parse({"run", "-m", "x.gguf", "--prompt=a=b", "-n", "-1", "--temp", "0", "--ram", "100G",
                            "-t", "3", "--top-k=7", "--exact", "--isa", "avx2", "--expert-groups", "8/4"});
  REQUIRE(line.problems.empty());
  CHECK(line.action == CommandLine::Action::execute);
  CHECK(line.command == Command::run);
  CHECK(line.options.model == "x.gguf");
  CHECK(line.options.prompt == "a=b");
  CHECK(line.options.predict == -1);
  CHECK(line.options.temperature == 0.0);
  CHECK(line.options.ram.bytes == 100 * kGiB);
  CHECK(line.options.threads == 3);
  CHECK(line.options.top_k == 7);
  CHECK(line.options.exact);
  CHECK(line.options.isa == "avx2");
  CHECK(line.options.context == 4096);
}

TEST_CASE("the same name means what its command says") {
  CHECK(parse({"bench", "-m", "x", "-p", "64"}).options.bench_prompt == 64);
  CHECK(parse({"run", "-m", "x", "-p", "64"}).options.prompt == "64");
  CHECK(parse({"synth", "-o", "x.gguf"}).options.output == "x.gguf");
  CHECK(parse({"bench", "-m", "x", "-o", "csv"}).options.format == "csv");
  CHECK(parse({"inspect", "x.gguf"}).options.model == "x.gguf");
}

TEST_CASE("all problems are told at once") {
  CommandLine line = parse(
      {"run", "-m", "x", "-p", "hi", "--temp", "warm", "--top-p", "1.5", "--ram", "100", "--io", "magic"});
  REQUIRE(line.problems.size() == 4);
  CHECK(contains(line.problems[0], "--temp warm: must be a number"));
  CHECK(contains(line.problems[1], "--top-p 1.5: must be from 0 to 1"));
  CHECK(contains(line.problems[2], "--ram 100: must be a size with a unit"));
  CHECK(contains(line.problems[3], "--io magic: must be one of auto|uring|pread"));
}

TEST_CASE("a misspelt option or command is answered with the nearest") {
  CHECK(contains(first_problem({"run", "-m", "x", "--promt", "hi"}), "did you mean --prompt?"));
  CHECK(contains(first_problem({"run", "--repeat-penality", "2"}), "did you mean --repeat-penalty?"));
  CHECK(contains(first_problem({"rnu"}), "did you mean `stoker run`?"));
  CHECK(contains(first_problem({"run", "--zzzzzzzzzz"}), "`stoker run --help` lists them"));
  CHECK(contains(first_problem({"-m", "x"}), "a command comes first"));
}

TEST_CASE("flags of other programs are answered with what to use instead") {
  for (const char* flag :
       {"-ot",  "-ngl",       "--mlock", "--no-mmap", "-fa",     "-ctv",   "-ub",   "-sm",
        "-ts",  "-mla",       "-fmoe",   "-rtr",      "-ser",    "--numa", "-cmoe", "-ncmoe",
        "-amb", "--metrics",  "-grt",    "-no-cnv",    "-cnv"}) {
    CAPTURE(flag);
    std::string text = first_problem({"run", "-m", "x", flag, "1"});
    CHECK(contains(text, std::string(flag) + ": "));
    CHECK_FALSE(contains(text, "no such option"));
  }
  CHECK(contains(first_problem({"run", "-ot=exps=CPU"}), "--ram SIZE"));
}

TEST_CASE("the type of the cache has the names that other programs use") {
  for (const char* flag : {"--cache-type", "--cache-type-k", "-ctk"})
    CHECK(parse({"run", "-m", "x", "-p", "hi", flag, "q8_0"}).options.cache_type == "q8_0");
  CHECK(contains(first_problem({"run", "-m", "x", "-p", "hi", "-ctk", "q4_0"}), "must be one of f16|q8_0|f32"));
  CHECK(contains(first_problem({"run", "-m", "x", "-p", "hi", "-ctk", "q8_0", "--exact"}), "--exact"));
  CHECK(first_problem({"run", "-m", "x", "-p", "hi", "-ctk", "f32", "--exact"}).empty());
}

TEST_CASE("the value of a foreign flag is not a second mistake") {
  CommandLine line =
      parse({"run", "-m", "x", "-p", "hi", "-ngl", "99", "-ot", "exps=CPU", "-fa", "-c", "100"});
  CHECK(line.problems.size() == 2 + 1);
  CHECK(line.options.context == 100);
}

TEST_CASE("an option of another command is answered with that command") {
  CHECK(contains(first_problem({"bench", "-m", "x", "--chat"}),
                 "an option of stoker run, not of `stoker bench`"));
}

TEST_CASE("a value that is missing or is an option is refused") {
  CHECK(contains(first_problem({"run", "-m"}), "-m: needs a value: -m FILE"));
  CHECK(contains(first_problem({"run", "-p", "--temp", "1"}),
                 "-p: needs a value, and --temp is an option; write -p=--temp"));
  CHECK(parse({"run", "-m", "x", "-p=--temp"}).options.prompt == "--temp");
  CHECK(contains(first_problem({"run", "--chat=yes"}), "takes no value"));
  CHECK(contains(first_problem({"run", "hello"}), "a prompt is given as -p"));
}

TEST_CASE("missing and contradicting options are found") {
  CHECK(contains(first_problem({"run", "-p", "hi"}), "no model"));
  CHECK(contains(first_problem({"run", "-m", "x"}), "no text"));
  CHECK(contains(first_problem({"run", "-m", "x", "-p", "a", "-f", "b"}), "give the text once"));
  CHECK(first_problem({"run", "-m", "x", "--chat"}).empty());
  CHECK(contains(first_problem({"run", "-m", "x", "--chat", "--raw"}), "--raw"));
  CHECK(contains(first_problem({"eval", "-m", "x"}), "either --tokens FILE or -f TEXT"));
  CHECK(contains(first_problem({"synth"}), "give -o FILE"));
  CHECK(contains(first_problem({"synth", "-o", "x", "--experts", "Q9_Z"}), "no such block format"));
  CHECK(contains(first_problem({"run", "-m", "x", "-p", "a", "--expert-groups", "4/8"}), "1 <= K <= G"));
  CHECK(contains(first_problem({"bench", "-m", "x", "-p", "0", "-n", "0"}), "nothing to measure"));
}

TEST_CASE("sizes have binary and decimal units") {
  i64 bytes = 0;
  CHECK(parse_byte_size("100G", bytes));
  CHECK(bytes == 100 * kGiB);
  CHECK(parse_byte_size("8GiB", bytes));
  CHECK(bytes == 8 * kGiB);
  CHECK(parse_byte_size("512m", bytes));
  CHECK(bytes == 512 * kMiB);
  CHECK(parse_byte_size("1.5TB", bytes));
  CHECK(bytes == 1500000000000);
  CHECK(parse_byte_size("64KiB", bytes));
  CHECK(bytes == 65536);
  CHECK(parse_byte_size("10B", bytes));
  CHECK(bytes == 10);
  for (const char* bad :
       {"", "G", "100", "-1G", "1Q", "1GG", "1.2.3G", "1 G", "0G", "9999999999T", "1iB", "1BB", "1BiB"}) {
    CAPTURE(bad);
    CHECK_FALSE(parse_byte_size(bad, bytes));
  }
}

TEST_CASE("every option has help, and no name stands twice in one command") {
  for (const CommandRow& command : command_rows()) {
    CAPTURE(command.name);
    std::string help = command_help(command.command);
    std::vector<std::string_view> seen;
    for (const OptionRow& option : option_rows()) {
      if ((option.commands & static_cast<u32>(command.command)) == 0) continue;
      CHECK_FALSE(option.help.empty());
      for (std::string_view name : split_names(option.names)) {
        CAPTURE(name);
        CHECK(contains(help, name));
        for (std::string_view other : seen) CHECK(other != name);
        seen.push_back(name);
      }
    }
    CHECK(contains(overview_help(), command.name));
  }
}

TEST_CASE("help shows the defaults of the fields") {
  CHECK(contains(command_help(Command::run), "[4096]"));
  CHECK(contains(command_help(Command::bench), "[512]"));
  CHECK(parse({"help", "bench"}).command == Command::bench);
  CHECK(parse({"bench", "-m", "--help"}).action == CommandLine::Action::execute);
  CHECK(parse({"bench", "--nonsense", "--help"}).action == CommandLine::Action::help);
  CHECK(parse({"--version"}).action == CommandLine::Action::version);
  CHECK(parse({}).action == CommandLine::Action::help);
}

TEST_CASE("edit distance counts insertions, deletions, replacements and swaps") {
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("rnu", "run") == 1);
  CHECK(edit_distance("abc", "abc") == 0);
  CHECK(nearest("--prom", {"--temp", "--prompt"}) == "--prompt");
  CHECK(nearest("--qqqqqq", {"--temp", "--prompt"}).empty());
}

TEST_CASE("--policy has the names that there are policies for") {
  std::string names;
  for (const PolicyRow& policy : policy_rows()) names += (names.empty() ? "" : "|") + std::string(policy.name);
  for (const OptionRow& option : option_rows())
    if (option.names == "--policy") CHECK(option.metavar == names);
  CHECK(parse({"run", "-m", "x", "-p", "a"}).options.policy == policy_rows()[0].name);
}
