// Answers that need no generation: what model this is, what its slots do, text as tokens and back.
#pragma once

#include "tools/serve/service.h"

namespace stoker {

Json models_json(const Service& service);
Json props_json(const Service& service);
Json slots_json(const Service& service);
Json tokens_of(const Service& service, const RequestBody& body);
Json text_of(const Service& service, const RequestBody& body);

}  // namespace stoker
