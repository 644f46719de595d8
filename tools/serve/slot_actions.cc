#include "tools/serve/slot_actions.h"

#include <charconv>
#include <filesystem>
#include <mutex>

#include "kernels/base/clock.h"
#include "runtime/engine.h"
#include "runtime/slot_file.h"

namespace stoker {

namespace {

i64 slot_number(const Service& service, const std::string& id) {
  i64 number = -1;
  std::from_chars(id.data(), id.data() + id.size(), number);
  if (number < 0 || number >= service.batcher().slots())
    throw ApiError(400, fmt::format("slot {}: there are slots 0 to {}", id, service.batcher().slots() - 1), "id_slot");
  return number;
}

// A plain name: what a request says must not lead out of the folder.
std::string file_path(const Service& service, const RequestBody& body) {
  std::string name = body.need_text("filename");
  bool plain = !name.empty() && name.size() <= 200 && name[0] != '.';
  for (char c : name) plain = plain && static_cast<u8>(c) >= 0x20 && c != '/' && c != '\\';
  if (!plain) bad_field("filename", "must be the name of a file, without a folder, and not begin with a dot");
  return (std::filesystem::path(service.options().slot_save_path) / name).string();
}

// One file at a time: two slots saved under one name at once would share its partial file.
std::mutex saving;

f64 ms_since(i64 begin_ns) { return static_cast<f64>(steady_clock().now_ns() - begin_ns) / 1e6; }

}  // namespace

Json slot_action(const Service& service, const std::string& id, const std::string& action, const std::string& body) {
  bool save = action == "save", restore = action == "restore", erase = action == "erase";
  if (!save && !restore && !erase) bad_field("action", "'{}' is not one of save, restore and erase", action);
  i64 number = slot_number(service, id);
  if (!erase && service.options().slot_save_path.empty())
    throw ApiError(501, "slots are not saved or restored by this server; start it with --slot-save-path DIR");
  std::string path = erase ? "" : file_path(service, RequestBody(body));
  std::string name = erase ? "" : std::filesystem::path(path).filename().string();
  const Engine& engine = service.engine();
  i64 layers = engine.hparams().layers, vocab = engine.hparams().vocab;
  Json out = {{"id_slot", number}};
  bool had = service.batcher().with_slot(number, [&](BatchSlot& slot) {
    i64 begin_ns = steady_clock().now_ns();
    if (erase) {
      out["n_erased"] = slot.held();
      slot.set_tokens({});
    } else if (save) {
      out["filename"] = name;
      out["n_saved"] = slot.held();
      std::lock_guard lock(saving);
      try {
        out["n_written"] = save_slot(path, service.model_id(), layers, slot.tokens(), slot.cache());
      } catch (const Error& e) {
        throw ApiError(500, e.what());
      }
      out["timings"] = {{"save_ms", ms_since(begin_ns)}};
    } else {
      // A failure half way leaves the cache empty, and so must be what the slot says it holds.
      SlotFileInfo info;
      try {
        info = restore_slot(path, service.model_id(), layers, vocab, slot.cache());
      } catch (...) {
        if (slot.cache().length() < slot.held()) slot.set_tokens({});
        throw;
      }
      out["filename"] = name;
      out["n_restored"] = info.tokens.size();
      out["n_read"] = info.bytes;
      slot.set_tokens(std::move(info.tokens));
      out["timings"] = {{"restore_ms", ms_since(begin_ns)}};
    }
  });
  if (!had) throw ApiError(503, "the server is shutting down");
  return out;
}

}  // namespace stoker
