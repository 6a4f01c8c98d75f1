// A communicator out of messages between ranks: each collective is one exchange of pieces between all pairs, and an
// all_reduce of many bytes two, with the ordered sum between them. Extra memory: a reduction holds (size - 1) / size of
// its input, of category kWorkspace, until it is done.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/transport.h"

namespace octet {

// Returns when all ranks of the transport have made theirs. When the last communicator made from it is destroyed, waits
// for the other ranks to come to the same point. Communicators of one run may be used from several threads, each from
// one at a time.
std::unique_ptr<Communicator> make_message_communicator(std::unique_ptr<Transport> transport,
                                                        const CommunicatorOptions& options);

}  // namespace octet
