#include "kernels/base/work_folder.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/base/error.h"

namespace stoker {

namespace fs = std::filesystem;

WorkFolder::WorkFolder(const std::string& parent) {
  fs::path base = parent.empty() ? fs::temp_directory_path() : fs::path(parent);
  path_ = (base / "stoker-XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr) fail("{}: cannot make a folder there: {}", base.string(), std::strerror(errno));
}

WorkFolder::~WorkFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace stoker
