// Without a card nothing is tested, and meson is told so.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "kernels/device/cuda_device.h"
#include "tests/kernels/cuda/which_card.h"

const bool stoker::test::kEmulatedCard = false;

int main(int argc, char** argv) {
  if (stoker::cuda_presence().cards == 0) {
    std::printf("skipped: %s\n", stoker::cuda_presence().why_none.c_str());
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
