// The one program. Each subcommand lives in tools/commands/.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <new>

#include "core/base/environment.h"
#include "core/base/error.h"
#include "kernels/self_test.h"
#include "parallel/launch_environment.h"
#include "tools/commands/commands.h"

namespace {

// Standard streams that were closed become /dev/null, so that no file of ours takes their numbers and their output; and
// a file size limit is an error of the write, not the end of the process.
void prepare_process() {
  for (int fd = ::open("/dev/null", O_RDWR); fd >= 0;) {
    if (fd > 2) {
      ::close(fd);
      break;
    }
    fd = ::dup(fd);
  }
  ::signal(SIGXFSZ, SIG_IGN);
}

int run(int argc, char** argv) {
  octet::CommandLine line("octet", "Octet trains mixture-of-experts language models in 8-bit floating point.",
                          octet::version_text);
  octet::add_prepare_command(line);
  octet::add_check_command(line);
  octet::add_train_command(line);
  octet::add_launch_command(line);
  octet::add_verify_command(line);
  octet::add_eval_command(line);
  octet::add_sample_command(line);
  octet::add_ckpt_command(line);
  octet::add_report_command(line);
  octet::add_bench_command(line);
  octet::add_doctor_command(line);
  octet::add_docs_command(line);
  octet::add_help_command(line);
  return line.run({argv + 1, argv + argc});
}

}  // namespace

int main(int argc, char** argv) {
  prepare_process();
  try {
    octet::check_environment();
    octet::kernels::run_self_test();
    return run(argc, argv);
  } catch (const octet::Error& error) {
    // The ranks of a launch have one command line: one of them says what is wrong with it.
    const bool is_said = error.kind() == octet::ErrorKind::kArgument && octet::launched_rank() != 0;
    if (!is_said) std::fputs(error.block().c_str(), stderr);
    return error.code();
  } catch (const std::bad_alloc&) {
    const octet::Error error(
        octet::ErrorKind::kMemory,
        {.what = "out of memory", .where = "on the host", .why = {}, .fix = "lower train.micro_batch or data.seq_len"});
    std::fputs(error.block().c_str(), stderr);
    return error.code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "octet: error: %s\n  why:   this is a fault of octet itself\n", error.what());
    return 2;
  }
}
