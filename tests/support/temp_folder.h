// Where tests put files. The one place that names temporary files.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker::test {

// A folder of its own that disappears with the object, in `parent` (default: the system's temporary folder).
class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = "") {
    std::filesystem::path base(parent);
    if (parent.empty()) base = std::filesystem::temp_directory_path();
    std::string name = (base / "stoker-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot create " + name);
    path_ = name;
    std::filesystem::permissions(path_, std::filesystem::perms{0755});  // some tests become another user
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  // Folders on the way are made.
  std::string write(std::string_view name, std::string_view bytes) const {
    std::filesystem::create_directories(std::filesystem::path(file(name)).parent_path());
    std::ofstream(file(name), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file(name);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) found.push_back(entry.path().filename());
    return found;
  }

 private:
  std::string path_;
};

}  // namespace stoker::test
