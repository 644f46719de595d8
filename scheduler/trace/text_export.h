// A trace as text, for other programs: CSV (the columns that text_import.h reads, plus token) or one JSON object per
// line.
#pragma once

#include <string>

#include "scheduler/trace/trace_format.h"

namespace stoker {

std::string csv_heading(const TraceHeader& header);
// Lines of one record; the position is its step.
void append_csv(const TraceHeader& header, const TraceRecord& record, std::string& out);
void append_json(const TraceHeader& header, const TraceRecord& record, std::string& out);

}  // namespace stoker
