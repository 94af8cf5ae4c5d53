#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "model/weights/package.h"

namespace tim4rec {
namespace {

constexpr size_t kMaxIdBytes = 256;

// Whether `text` is well-formed UTF-8: no overlong forms, surrogates or values beyond U+10FFFF.
bool IsUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) { return static_cast<uint8_t>(text[at]); };
    const uint8_t lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() - i < length) return false;
    const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (byte(i + 1) < low || byte(i + 1) > high) return false;
    for (size_t k = 2; k < length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return false;
    }
    i += length;
  }
  return true;
}

}  // namespace

absl::StatusOr<ItemCatalog> ItemCatalog::Create(std::vector<Item> items) {
  if (items.empty() || !items[0].id.empty()) {
    return absl::InvalidArgumentError("items: entry 0 must be the padding item, with an empty id");
  }
  if (items.size() > static_cast<size_t>(INT32_MAX)) {
    return absl::InvalidArgumentError(absl::StrCat("items: ", items.size(), " is too many"));
  }
  ItemCatalog catalog;
  catalog.items_ = std::move(items);
  catalog.index_.reserve(catalog.items_.size());
  for (size_t i = 1; i < catalog.items_.size(); ++i) {
    const std::string& id = catalog.items_[i].id;
    if (id.empty() || id.size() > kMaxIdBytes || !IsUtf8(id)) {
      return absl::InvalidArgumentError(absl::StrCat("items[", i, "].id: ", id.size(),
                                                     " bytes; it must be 1 to ", kMaxIdBytes,
                                                     " bytes of valid UTF-8"));
    }
    const auto [entry, inserted] = catalog.index_.emplace(id, static_cast<int32_t>(i));
    if (!inserted) {
      return absl::InvalidArgumentError(absl::StrCat(
          "items[", i, "].id: \"", id, "\" is already the id of item ", entry->second));
    }
    catalog.by_popularity_.push_back(static_cast<int32_t>(i));
    for (const std::string& category : catalog.items_[i].categories) {
      std::vector<int32_t>& items = catalog.categories_[category];
      if (items.empty() || items.back() != static_cast<int32_t>(i)) {
        items.push_back(static_cast<int32_t>(i));
      }
    }
  }
  std::stable_sort(catalog.by_popularity_.begin(), catalog.by_popularity_.end(),
                   [&catalog](int32_t a, int32_t b) {
                     return catalog.items_[a].train_events > catalog.items_[b].train_events;
                   });
  return catalog;
}

std::optional<int32_t> ItemCatalog::Find(std::string_view id) const {
  const auto it = index_.find(id);
  if (it == index_.end()) return std::nullopt;
  return it->second;
}

std::span<const int32_t> ItemCatalog::InCategory(std::string_view category) const {
  const auto it = categories_.find(category);
  if (it == categories_.end()) return {};
  return it->second;
}

}  // namespace tim4rec
