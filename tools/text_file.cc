#include "tools/text_file.h"

#include <span>

#include "scheduler/model_file/output_file.h"

namespace stoker {

void write_text_file(const std::string& path, std::string_view text) {
  OutputFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.finish(/*durable=*/true);
  file.commit();
}

}  // namespace stoker
