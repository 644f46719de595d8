#include "kernels/base/own_thread.h"

#include <exception>
#include <thread>

namespace stoker {

void on_own_thread(FunctionRef<void()> work) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace stoker
