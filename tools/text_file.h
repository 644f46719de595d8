// A small text file that is complete or not there: written under another name, synced, renamed.
#pragma once

#include <string>
#include <string_view>

namespace stoker {

// Replaces what is there. Throws Error; an old file then stays as it was.
void write_text_file(const std::string& path, std::string_view text);

}  // namespace stoker
