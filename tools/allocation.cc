// operator new that throws std::bad_alloc when there is no memory. The one of Debian's mimalloc, which is compiled as C, aborts
// the program instead, whatever handler is set: a request for which memory is short would end all others. What this returns is
// malloc's, which is mimalloc's, as is every operator delete.
#include <algorithm>
#include <cstdlib>
#include <new>

namespace {

void* aligned(std::size_t bytes, std::align_val_t alignment) {
  void* memory = nullptr;
  if (::posix_memalign(&memory, std::max(static_cast<std::size_t>(alignment), sizeof(void*)), bytes) != 0) throw std::bad_alloc();
  return memory;
}

void* plain(std::size_t bytes) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return plain(bytes); }
void* operator new[](std::size_t bytes) { return plain(bytes); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return aligned(bytes, alignment); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) { return aligned(bytes, alignment); }
