#include "scheduler/machine.h"

#include <doctest/doctest.h>

#include "kernels/base/buffer.h"
#include "tests/support/temp_folder.h"

using namespace stoker;

namespace {

// A made-up /proc and /sys.
class Tree {
 public:
  Tree() { write("proc/meminfo", "MemTotal:       1000000 kB\nMemFree: 5 kB\nMemAvailable:    800000 kB\n"); }
  void write(const std::string& name, const std::string& text) { folder_.write(name, text); }
  Machine read() const { return read_machine(folder_.path()); }

 private:
  test::TempFolder folder_;
};

}  // namespace

TEST_CASE("without control groups the machine's own memory counts") {
  Tree tree;
  Machine m = tree.read();
  CHECK(m.total_ram_bytes == 1000000 * kKiB);
  CHECK(m.available_bytes == 800000 * kKiB);
  CHECK(m.limited_by == "memory of the machine");
  CHECK(m.physical_cores >= 1);
}

TEST_CASE("a version 2 group limits, its page cache does not count, parents limit too") {
  Tree tree;
  tree.write("proc/self/cgroup", "0::/user/box\n");
  tree.write("sys/fs/cgroup/user/box/memory.max", "max\n");
  CHECK(tree.read().available_bytes == 800000 * kKiB);
  tree.write("sys/fs/cgroup/user/box/memory.max", "500000000\n");
  tree.write("sys/fs/cgroup/user/box/memory.current", "300000000\n");
  tree.write("sys/fs/cgroup/user/box/memory.stat",
             "anon 1\nfile 9\ninactive_file 60000000\nactive_file 40000000\n");
  CHECK(tree.read().available_bytes == 300000000);
  CHECK(tree.read().limited_by == "control group");
  tree.write("sys/fs/cgroup/user/memory.high", "70000000\n");
  tree.write("sys/fs/cgroup/user/memory.current", "50000000\n");
  CHECK(tree.read().available_bytes == 20000000);
  tree.write("sys/fs/cgroup/user/memory.current", "90000000\n");
  CHECK(tree.read().available_bytes == 0);
}

TEST_CASE("a container that sees its group at the top of the mount is limited by it") {
  Tree tree;
  tree.write("proc/self/cgroup", "0::/docker/0123456789\n");
  tree.write("sys/fs/cgroup/memory.max", "100000000\n");
  tree.write("sys/fs/cgroup/memory.current", "40000000\n");
  CHECK(tree.read().available_bytes == 60000000);
}

TEST_CASE("a version 1 group limits") {
  Tree tree;
  tree.write("proc/self/cgroup", "12:cpuset:/box\n4:cpu,memory:/box\n1:name=systemd:/init\n");
  tree.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "200000000\n");
  tree.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "150000000\n");
  tree.write("sys/fs/cgroup/memory/box/memory.stat", "cache 7\ntotal_inactive_file 10000000\n");
  CHECK(tree.read().available_bytes == 60000000);
  tree.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n");  // its "no limit"
  CHECK(tree.read().available_bytes == 800000 * kKiB);
}

TEST_CASE("this machine has memory, and faulting in stops before it has none") {
  Machine m = read_machine();
  CHECK(m.total_ram_bytes > 0);
  CHECK(m.available_bytes > 0);
  CHECK(m.available_bytes <= m.total_ram_bytes);
  Buffer small(kMiB, "test");
  if (m.available_bytes > 2 * kFaultReserve) CHECK(fault_in_if_available(small.data(), small.bytes()));
  // More than there is: refused before a page is touched (the range is not even mapped).
  CHECK(!fault_in_if_available(small.data(), m.total_ram_bytes));
}
