// Tests of the table of ops run on a card, and on an emulated one, which is some ten thousand times slower.
#pragma once

namespace stoker::test {

extern const bool kEmulatedCard;

}  // namespace stoker::test
