// POST /slots/ID?action=save|restore|erase, as llama-server has it: what a slot's cache holds goes to a file below
// --slot-save-path and back.
#pragma once

#include <string>

#include "tools/serve/service.h"

namespace stoker {

// `body` {"filename": NAME}; erase needs none. Waits until the slot is idle. Throws ApiError: 400 for a wrong id, action,
// name or file, 501 without --slot-save-path, 503 when the server stops, 500 when the disk does not do its part.
Json slot_action(const Service& service, const std::string& id, const std::string& action, const std::string& body);

}  // namespace stoker
