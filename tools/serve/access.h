// Access: which requests are answered: the keys that they must have, and the origins whose pages may send them from a browser.
#pragma once

#include <string>
#include <vector>

#include "tools/options.h"

namespace stoker {

class Access {
 public:
  // Throws Error when the file of keys cannot be read or has none, or an origin is none.
  explicit Access(const Options& options);

  // Headers of the request: "Bearer KEY", or the key alone. Equal keys take as long as different ones.
  bool has_key(const std::string& authorization, const std::string& key) const;

  // What to tell the browser of a page from `origin`: that, * or "" when its page must not ask.
  std::string allowed_origin(const std::string& origin) const;

 private:
  std::vector<std::string> keys_, origins_;
};

}  // namespace stoker
