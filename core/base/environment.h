// The environment variables that Octet reads.
#pragma once

namespace octet {

// Throws Error(kConfig) that lists every variable OCTET_* that Octet does not read, with the name it may have meant,
// and every one whose value cannot be used. A misspelt variable would otherwise be a setting that silently does
// nothing. Reads OCTET_LOG (core/base/log.h) and OCTET_ISA (core/base/isa.h).
void check_environment();

}  // namespace octet
