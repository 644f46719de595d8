#include "tools/serve/web_files.h"

#include <array>

namespace stoker {

std::span<const WebFile> web_files() {
  static constexpr std::array kFiles = {
      WebFile{"/", "text/html; charset=utf-8", web_index_html},
      WebFile{"/index.html", "text/html; charset=utf-8", web_index_html},
      WebFile{"/style.css", "text/css; charset=utf-8", web_style_css},
      WebFile{"/chat.js", "text/javascript; charset=utf-8", web_chat_js},
      WebFile{"/machine.js", "text/javascript; charset=utf-8", web_machine_js},
      WebFile{"/favicon.svg", "image/svg+xml", web_favicon_svg},
      WebFile{"/favicon.ico", "image/svg+xml", web_favicon_svg},
  };
  return kFiles;
}

}  // namespace stoker
