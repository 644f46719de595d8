// What `stoker tune` measures of this machine, and the machine file that comes of it.
#pragma once

#include <string>
#include <vector>

#include "scheduler/sim/sim_machine.h"

namespace stoker {

// "AMD Ryzen 9 7900X, 12 cores"
std::string machine_name();

struct DiskSpeed {
  i64 piece_bytes, depth;
  f64 gb_per_second;
};

struct MachineMeasure {
  SimMachine machine;
  std::vector<DiskSpeed> disk;  // of every size and depth that was tried, by size, then depth
  std::string disk_how;         // Reader::describe()
  bool disk_capped = false;     // faster than a machine file may say
  int threads = 0;

  // The least in flight, then the smallest reads, of those within 2 % of the fastest: others wait less for them.
  const DiskSpeed& best_disk() const;
};

struct MeasureRequest {
  std::string file;         // on the drive to be measured; a megabyte at least
  i64 request_bytes = 0;    // an expert's; 0: 8 MiB, or what the file holds
  int threads = 0;          // 0: one per physical core
  f64 seconds = .3;         // of each figure of the disk
  std::vector<BlockType> formats = {};  // whose kernels are measured out of memory, which takes a while; none: all
};

// Shows progress on stderr. Throws Error, or Interrupted after Ctrl-C.
MachineMeasure measure_machine(const MeasureRequest& request);

// A table of what was measured, for people; the machine file's text.
std::string measure_text(const MachineMeasure& measure);
std::string measure_toml(const MachineMeasure& measure);

// A file of random bytes on the drive of `folder`, for a machine without a model. Gone with the object.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& folder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace stoker
