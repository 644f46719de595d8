// WorkFolder: where a program puts files that it needs for a while.
#pragma once

#include <string>
#include <string_view>

namespace stoker {

// A folder of its own that disappears with the object, in `parent` (default: the system's temporary folder). Throws Error
// when none can be made there.
class WorkFolder {
 public:
  explicit WorkFolder(const std::string& parent = "");
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

}  // namespace stoker
