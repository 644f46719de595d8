// Where tests put files.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/work_folder.h"

namespace stoker::test {

// A WorkFolder with what tests do in one.
class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = "") : folder_(parent) {
    std::filesystem::permissions(path(), std::filesystem::perms{0755});  // some tests become another user
  }

  const std::string& path() const { return folder_.path(); }
  std::string file(std::string_view name) const { return folder_.file(name); }
  // Folders on the way are made.
  std::string write(std::string_view name, std::string_view bytes) const {
    std::filesystem::create_directories(std::filesystem::path(file(name)).parent_path());
    std::ofstream(file(name), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file(name);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path())) found.push_back(entry.path().filename());
    return found;
  }

 private:
  WorkFolder folder_;
};

}  // namespace stoker::test
