// Profile: the settings that `stoker tune` found best for a model on this machine, as a TOML file. run, bench and serve
// take it up; what the command line says wins.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tools/options.h"

namespace stoker {

class Gguf;
struct Hparams;

struct Profile {
  std::string model;        // its name, for people
  std::string fingerprint;  // model_fingerprint()
  std::string machine;      // machine_name()
  i64 ram_bytes = 0;        // for experts, when it was tuned
  f64 default_tokens_per_second = 0, tokens_per_second = 0;  // measured side by side
  std::vector<Setting> settings;
};

// What distinguishes a model's streaming from another's: name, router, bytes and formats of the experts. 16 hex digits.
std::string model_fingerprint(const Gguf& gguf, const Hparams& hparams);

std::string profile_toml(const Profile& profile);
// `where` is for messages. Throws Error for what is missing, unknown, of the wrong kind.
Profile parse_profile(std::string_view toml, const std::string& where);
Profile read_profile(const std::string& path);

// Where a model's profile is kept: $XDG_CONFIG_HOME/stoker or ~/.config/stoker. "" when neither variable is set.
std::string profile_folder();
std::string default_profile_path(const std::string& fingerprint);

// Sets what the model's profile says and the command line does not, and says so on stderr. --profile FILE: throws Error when
// it is damaged, or for another model or machine; one that is found by itself is then warned about and left out.
void use_profile(Command command, Options& options);

}  // namespace stoker
