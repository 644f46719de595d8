// For work that leaves its mark on the thread it runs in: a WorkerPool pins the one that makes it.
#pragma once

#include "kernels/base/threads.h"

namespace stoker {

// Runs `work` on a thread of its own and waits for its end. Throws what it throws.
void on_own_thread(FunctionRef<void()> work);

}  // namespace stoker
