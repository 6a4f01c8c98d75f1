// A rank for the tests of octet launch: joins the others over MPI, and then does what its arguments say.
//   launch_rank report                    one line on stdout and one on stderr per rank
//   launch_rank arguments WORD...         rank 0 prints its arguments, each in brackets
//   launch_rank exit RANK CODE            all ranks leave MPI, and this one ends with CODE
//   launch_rank fail RANK CODE            this rank ends with CODE, while the others wait for it
//   launch_rank abort RANK CODE           this rank ends all of them
//   launch_rank kill RANK SIGNAL          this rank sends itself the signal, while the others wait for it
//   launch_rank wait DIRECTORY [SECONDS]  each rank writes DIRECTORY/RANK with its process number, waits for SIGUSR1,
//                                         takes so long to save, writes DIRECTORY/RANK.saved and ends with 75
#define OMPI_SKIP_MPICXX 1  // the C++ bindings, which MPI itself has dropped
#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/base/file_system.h"
#include "tools/train/end_with_parent.h"

namespace octet {
namespace {

volatile std::sig_atomic_t told = 0;

void sleep_seconds(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

int run(const std::vector<std::string>& words) {
  end_with_parent();
  const std::string what = words.at(0);
  if (what == "wait") std::signal(SIGUSR1, [](int) { told = 1; });
  MPI_Init(nullptr, nullptr);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Barrier(MPI_COMM_WORLD);
  const auto is_mine = [&] { return rank == std::stoi(words.at(1)); };
  if (what == "report") {
    char host[256] = {};
    ::gethostname(host, sizeof host - 1);
    std::printf("rank %d of %d on %s\n", rank, ranks, host);
    std::fprintf(stderr, "stderr of rank %d\n", rank);
  } else if (what == "arguments") {
    if (rank == 0) {
      for (const std::string& word : words) std::printf("[%s]\n", word.c_str());
    }
  } else if (what == "exit") {
    MPI_Finalize();
    return is_mine() ? std::stoi(words.at(2)) : 0;
  } else if (what == "fail") {
    if (is_mine()) std::_Exit(std::stoi(words.at(2)));
    sleep_seconds(20);
  } else if (what == "abort") {
    if (is_mine()) MPI_Abort(MPI_COMM_WORLD, std::stoi(words.at(2)));
    sleep_seconds(20);
  } else if (what == "kill") {
    if (is_mine()) std::raise(std::stoi(words.at(2)));
    sleep_seconds(20);
  } else if (what == "wait") {
    const std::string file = join_path(words.at(1), std::to_string(rank));
    real_file_system().write_atomically(file, std::to_string(::getpid()));
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) std::puts("all are there"), std::fflush(stdout);
    while (told == 0) sleep_seconds(0.005);
    if (words.size() > 2) sleep_seconds(std::stod(words[2]));
    real_file_system().write_atomically(file + ".saved", "");
    MPI_Finalize();
    return kExitSavedAndRequeue;
  }
  MPI_Finalize();
  return 0;
}

}  // namespace
}  // namespace octet

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--version") {
    std::puts("launch_rank 1");
    return 0;
  }
  return octet::run({argv + 1, argv + argc});
}
