#include "tools/serve/access.h"

#include <algorithm>
#include <sstream>

#include "kernels/base/error.h"
#include "tools/text_input.h"

namespace stoker {

namespace {

std::vector<std::string> parts_of(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) {
    size_t begin = part.find_first_not_of(" \t\r\n");
    if (begin != std::string::npos) parts.push_back(part.substr(begin, part.find_last_not_of(" \t\r\n") + 1 - begin));
  }
  return parts;
}

bool same_text(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size() && !b.empty(); i++)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i % b.size()]);
  return difference == 0;
}

}  // namespace

Access::Access(const Options& o) : origins_(parts_of(o.cors, ',')) {
  if (!o.api_key.empty()) keys_.push_back(o.api_key);
  if (!o.api_key_file.empty()) {
    std::vector<std::string> keys = parts_of(read_text_file(o.api_key_file), '\n');
    if (keys.empty()) fail("{}: there is no key in it; write one a line", o.api_key_file);
    keys_.insert(keys_.end(), keys.begin(), keys.end());
  }
  for (const std::string& origin : origins_) {
    size_t host = origin.find("://");
    bool good = origin == "*" || (host != std::string::npos && host > 0 && origin.size() > host + 3 &&
                                  origin.find('/', host + 3) == std::string::npos);
    if (!good) fail("--cors {}: an origin is written like https://chat.example.org, without a path; * is all", origin);
  }
}

bool Access::has_key(const std::string& authorization, const std::string& key) const {
  bool known = keys_.empty();
  for (const std::string& one : keys_) {
    known |= same_text(authorization, "Bearer " + one);
    known |= same_text(key, one);
  }
  return known;
}

std::string Access::allowed_origin(const std::string& origin) const {
  if (origin.empty()) return {};
  bool all = std::find(origins_.begin(), origins_.end(), "*") != origins_.end();
  if (all) return "*";
  return std::find(origins_.begin(), origins_.end(), origin) != origins_.end() ? origin : "";
}

}  // namespace stoker
