// What ranks must agree on before any of them goes on: texts, and that all went well. An error of one rank becomes an
// error of all, so that none waits in a collective for a rank that has left. The communicators move host memory.
#pragma once

#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"

namespace octet {

// Texts as one text, and back. Throws kCommunication where `packed` is cut off.
std::string pack(const std::vector<std::string>& texts);
std::vector<std::string> unpack(std::string_view packed);

// text becomes what it is on the root.
void broadcast_text(Communicator& world, std::string& text, int root = 0);
// That of every rank, on every rank.
std::vector<std::string> gather_texts(Communicator& world, const std::string& mine);

// What the call threw, if it threw an Error or found no memory.
template <class Call>
std::optional<Error> error_in(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorKind::kMemory, {.what = "out of memory", .where = {}, .why = {}, .fix = {}});
  }
  return std::nullopt;
}

// Throws the error, with which every rank calls it; also where another rank has thrown it and given up before this one
// has.
[[noreturn]] void fail_together(Communicator& world, const Error& error);

// Every rank says how it went. Where one has an error, all throw that of the first such rank, which says
// "rank 3 (host x): " before what it was; a rank by itself throws its own.
void vote(Communicator& world, const std::optional<Error>& mine);

// Runs the call on this rank, and votes. The call itself makes no collective that a rank with an error would miss.
template <class Call>
void all_or_none(Communicator& world, Call&& call) {
  vote(world, error_in(static_cast<Call&&>(call)));
}

}  // namespace octet
