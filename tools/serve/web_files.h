// The page at /: files in serve/web/, which the binary carries.
#pragma once

#include <span>
#include <string_view>

namespace stoker {

struct WebFile {
  const char* path;
  const char* type;
  std::string_view (*text)();
};

std::span<const WebFile> web_files();

std::string_view web_index_html();
std::string_view web_style_css();
std::string_view web_chat_js();
std::string_view web_machine_js();
std::string_view web_favicon_svg();

}  // namespace stoker
