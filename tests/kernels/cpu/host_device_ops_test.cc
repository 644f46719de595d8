// A host device's ops must give the CPU's bits, from device memory alone, in the order of its stream.
#include "kernels/cpu/host_device_ops.h"

#include <doctest/doctest.h>

#include "kernels/device/host_device.h"
#include "kernels/format/packed.h"
#include "tests/kernels/cpu/op_inputs.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr i64 kHidden = 512, kFfn = 256, kTokens = 5;

// Posts things to a device's stream and keeps them until they have run.
class OnDevice {
 public:
  explicit OnDevice(HostDeviceOptions options) : device_(open_host_device(options, "host:0")), stream_(device_->make_stream()) {}

  DevicePtr room(i64 bytes) {
    DevicePtr memory;
    REQUIRE(device_->allocate(bytes, "a test", memory).ok());
    return memory;
  }
  template <class T>
  const T* put(const T* data, i64 bytes) {
    DevicePtr memory = room(bytes);
    REQUIRE(stream_->copy_to_device(memory, data, bytes).ok());
    return memory.as<const T>();
  }
  DeviceStream& stream() { return *stream_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceStream> stream_;
};

struct Experts {
  std::vector<TestMatrix> matrices;
  std::vector<std::vector<i32>> rows, out_rows;

  explicit Experts(Rng& rng) {
    for (BlockType type : {BlockType::Q4_K, BlockType::IQ2_XXS, BlockType::Q8_0}) {
      matrices.push_back({type, kFfn, kHidden, 0.06f, rng});
      matrices.push_back({type, kFfn, kHidden, 0.06f, rng});
      matrices.push_back({type, kHidden, kFfn, 0.06f, rng});
    }
    rows = {{0, 2, 4}, {1}, {0, 1, 2, 3, 4}};
    out_rows = {{0, 1, 2}, {3}, {4, 5, 6, 7, 8}};
  }
};
constexpr i64 kOutRows = 9;

// [kOutRows, kHidden], quantised and computed by `ops`; `at` says where the operands of the op are.
template <class Put, class Room>
void compute(const Ops& ops, Stream& stream, const Experts& experts, const std::vector<f32>& x, bool exact, f32* out,
             std::vector<ExpertWork>& work, Put put, Room room) {
  const f32* here = put(x.data(), kTokens * kHidden * i64{sizeof(f32)});
  void* forms[2] = {};
  i64 i = 0;
  for (ActivationForm form : {ActivationForm::Q8_32, ActivationForm::Q8_256}) {
    forms[i] = room(kTokens * activation_row_bytes(form, kHidden));
    ops.quantize(stream, {.x = here, .rows = kTokens, .cols = kHidden, .x_stride = kHidden, .form = form, .out = forms[i++]});
  }
  i64 total = 0;
  for (size_t e = 0; e < experts.rows.size(); e++) {
    auto matrix = [&](size_t which) {
      const TestMatrix& m = experts.matrices[3 * e + which];
      const std::byte* data = put(m.blocks.data(), static_cast<i64>(m.blocks.size()));
      if (ops.pack == nullptr) return Matrix{data, m.type, m.rows, m.cols};
      std::byte* to = static_cast<std::byte*>(room(packed_bytes(m.type, m.rows, m.cols)));
      ops.pack(stream, {.type = m.type, .rows = m.rows, .cols = m.cols, .from = data, .to = to});
      return Matrix{to, m.type, m.rows, m.cols};
    };
    i64 tokens = static_cast<i64>(experts.rows[e].size());
    work.push_back({.gate = matrix(0),
                    .up = matrix(1),
                    .down = matrix(2),
                    .rows = put(experts.rows[e].data(), tokens * 4),
                    .out_rows = put(experts.out_rows[e].data(), tokens * 4),
                    .tokens = tokens});
    total += tokens;
  }
  i64 scratch = expert_scratch_bytes(total, kFfn);
  ops.expert_ffn(stream, {.work = work,
                          .x = here,
                          .x_q8_32 = forms[0],
                          .x_q8_256 = forms[1],
                          .hidden = kHidden,
                          .ffn = kFfn,
                          .out = out,
                          .scratch = static_cast<std::byte*>(room(scratch)),
                          .scratch_bytes = scratch,
                          .exact = exact});
}

}  // namespace

TEST_CASE("experts on a host device have the CPU's bits") {
  Rng rng(11);
  Experts experts(rng);
  std::vector<f32> x = normals(kTokens * kHidden, 1, rng);
  i64 out_bytes = kOutRows * kHidden * i64{sizeof(f32)};
  for (bool exact : {false, true})
    for (IsaLevel level : levels()) {
      std::vector<f32> expected(static_cast<size_t>(kOutRows * kHidden)), got(expected.size());
      std::vector<ExpertWork> work;
      std::vector<std::vector<std::byte>> kept;
      WorkerPool pool({.workers = 2, .pin = false});
      Stream cpu(pool, level);
      compute(
          cpu_ops(), cpu, experts, x, exact, expected.data(), work, [](const auto* data, i64) { return data; },
          [&](i64 bytes) -> void* { return kept.emplace_back(static_cast<size_t>(bytes)).data(); });

      for (const Ops* ops : {&host_device_ops(), &packed_host_device_ops()}) {
        CAPTURE(ops->name);
        OnDevice device({.vram_bytes = 16 * kMiB, .delay_us_max = 100});
        Stream stream(device.stream(), level);
        DevicePtr out = device.room(out_bytes);
        std::vector<ExpertWork> posted;
        compute(
            *ops, stream, experts, x, exact, out.as<f32>(), posted,
            [&](const auto* data, i64 bytes) { return device.put(data, bytes); },
            [&](i64 bytes) { return device.room(bytes).as<void>(); });
        CHECK(device.stream().copy_to_host(got.data(), out, out_bytes).ok());
        CHECK(device.stream().synchronize().ok());
        CHECK(got == expected);
        CHECK(got[0] == got[0]);
      }
    }
}

TEST_CASE("what is packed on a host device comes back as it was, whatever the number of rows") {
  Rng rng(12);
  for (BlockType type : {BlockType::Q3_K, BlockType::IQ4_NL, BlockType::MXFP4})
    for (i64 rows : {1, 31, 64, 67}) {
      const TestMatrix m(type, rows, 256, 0.1f, rng);
      i64 bytes = static_cast<i64>(m.blocks.size());
      OnDevice device({.vram_bytes = kMiB, .delay_us_max = 50});
      Stream stream(device.stream(), best_isa_level());
      const std::byte* there = device.put(m.blocks.data(), bytes);
      DevicePtr packed = device.room(packed_bytes(type, rows, 256)), back = device.room(bytes);
      packed_host_device_ops().pack(stream, {type, rows, 256, there, packed.as<void>()});
      packed_host_device_ops().unpack(stream, {type, rows, 256, packed.as<void>(), back.as<void>()});
      std::vector<std::byte> got(m.blocks.size()), between(m.blocks.size());
      CHECK(device.stream().copy_to_host(got.data(), back, bytes).ok());
      CHECK(device.stream().copy_to_host(between.data(), packed, bytes).ok());
      CHECK(device.stream().synchronize().ok());
      CHECK(std::equal(got.begin(), got.end(), m.blocks.begin()));
      CHECK((rows == 1 || between != got));
    }
}

TEST_CASE("a router on a host device has the CPU's bits") {
  constexpr i64 kExperts = 48, kTopK = 4;
  Rng rng(13);
  std::vector<f32> matrix = normals(kExperts * kHidden, 0.1f, rng), x = normals(kTokens * kHidden, 1, rng),
                   bias = normals(kExperts, 0.1f, rng);
  auto floats = [](i64 count) { return count * i64{sizeof(f32)}; };
  const i64 chosen = kTokens * kTopK;
  // Logits, then ids and weights, one behind the other.
  auto compute = [&](const Ops& ops, Stream& stream, const f32* w, const f32* rows, const f32* b, f32* logits, i32* ids) {
    ops.matmul(stream, {.weights = {w, BlockType::F32, kExperts, kHidden},
                        .x = {rows, ActivationForm::F32, floats(kHidden)},
                        .tokens = kTokens,
                        .y = logits,
                        .y_stride = kExperts});
    ops.route(stream, {.logits = logits,
                       .tokens = kTokens,
                       .experts = kExperts,
                       .top_k = kTopK,
                       .bias = b,
                       .sigmoid = b != nullptr,
                       .normalise = true,
                       .scale = 2.5f,
                       .groups = 8,
                       .groups_used = 4,
                       .group_score_is_max = false,
                       .ids = ids,
                       .weights = reinterpret_cast<f32*>(ids + chosen)});
  };
  for (bool biased : {false, true})
    for (IsaLevel level : levels()) {
      std::vector<f32> logits(static_cast<size_t>(kTokens * kExperts));
      std::vector<i32> expected(static_cast<size_t>(2 * chosen)), got(expected.size());
      WorkerPool pool({.workers = 2, .pin = false});
      Stream cpu(pool, level);
      compute(cpu_ops(), cpu, matrix.data(), x.data(), biased ? bias.data() : nullptr, logits.data(), expected.data());
      for (const Ops* ops : {&host_device_ops(), &packed_host_device_ops()}) {
        CAPTURE(ops->name);
        OnDevice device({.vram_bytes = kMiB, .delay_us_max = 100});
        Stream stream(device.stream(), level);
        DevicePtr out = device.room(2 * floats(chosen));
        auto put = [&](const std::vector<f32>& v) { return device.put(v.data(), floats(static_cast<i64>(v.size()))); };
        compute(*ops, stream, put(matrix), put(x), biased ? put(bias) : nullptr,
                device.room(floats(kTokens * kExperts)).as<f32>(), out.as<i32>());
        CHECK(device.stream().copy_to_host(got.data(), out, 2 * floats(chosen)).ok());
        CHECK(device.stream().synchronize().ok());
        CHECK(got == expected);
        CHECK(got[0] != got[1]);
      }
    }
}
