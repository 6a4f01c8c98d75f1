// octet launch: starts the ranks of a run, on this machine, on several, or as a job of Slurm.
#include "tools/launch/launcher.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "parallel/mpi_communicator.h"
#include "tools/commands/commands.h"
#include "tools/launch/slurm.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

struct LaunchArguments {
  std::string config, out, hosts, agent, interface, time, partition;
  std::vector<std::string> overrides;
  int64_t ranks = 0, nodes = 0, ranks_per_node = 0;
  bool slurm = false, submit = false, with_mpirun = false;
};

std::string this_program() {
  std::error_code problem;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", problem);
  require(!problem, "launch: the path of this program is not known: {}", problem.message());
  return path.string();
}

// What stays of the arguments for octet train.
std::vector<std::string> train_words(const LaunchArguments& args, const std::string& run_dir) {
  std::vector<std::string> words = {"train", args.config};
  for (const std::string& each : args.overrides) words.insert(words.end(), {"--set", each});
  words.insert(words.end(), {"--out", run_dir});
  return words;
}

void check_ranks(const LaunchArguments& args, int64_t dp) {
  if (args.ranks == 0 || args.ranks == dp) return;
  fail(ErrorKind::kArgument,
       {.what = fmt::format("-n asks for {} ranks, and parallel.dp of the run is {}", args.ranks, dp),
        .where = args.config,
        .why = "every rank of a run is a data-parallel rank",
        .fix = fmt::format("leave -n out, or train on {} ranks: --set parallel.dp={}", args.ranks, args.ranks)});
}

// nodes * ranks_per_node = dp, where either may be left out.
void divide_over_nodes(LaunchArguments& args, int64_t dp) {
  if (args.nodes == 0) args.nodes = args.ranks_per_node == 0 ? 1 : dp / std::max<int64_t>(args.ranks_per_node, 1);
  if (args.ranks_per_node == 0) args.ranks_per_node = dp / std::max<int64_t>(args.nodes, 1);
  if (args.nodes * args.ranks_per_node == dp) return;
  fail(ErrorKind::kArgument,
       {.what = fmt::format("{} nodes of {} ranks are {} ranks, and parallel.dp of the run is {}", args.nodes,
                            args.ranks_per_node, args.nodes * args.ranks_per_node, dp),
        .where = args.config,
        .why = {},
        .fix = fmt::format("choose --nodes and --ranks-per-node whose product is {}, or --set parallel.dp={}", dp,
                           args.nodes * args.ranks_per_node)});
}

void refuse_together(bool both, const std::string& one, const std::string& other, const std::string& why) {
  if (!both) return;
  fail(ErrorKind::kArgument, {.what = fmt::format("{} and {} do not go together", one, other),
                              .where = "command line",
                              .why = why,
                              .fix = "leave one of them out"});
}

void refuse_alone(bool is_given, const std::string& option) {
  if (!is_given) return;
  fail(ErrorKind::kArgument, {.what = fmt::format("{} is for jobs of Slurm", option),
                              .where = "command line",
                              .why = {},
                              .fix = "add --slurm, or leave it out"});
}

int run_on_slurm(LaunchArguments args, const std::string& run_dir, int64_t dp) {
  refuse_together(!args.hosts.empty(), "--slurm", "--hosts", "Slurm chooses the hosts");
  refuse_together(!args.agent.empty(), "--slurm", "--agent", "Slurm starts the ranks");
  refuse_together(!args.interface.empty() && !args.with_mpirun, "--interface", "srun",
                  "it is an option of mpirun; --with-mpirun makes the job use it");
  divide_over_nodes(args, dp);
  const std::vector<std::string> train = train_words(args, run_dir);
  SlurmJob job{.name = file_name_of(run_dir),
               .nodes = args.nodes,
               .ranks_per_node = args.ranks_per_node,
               .time = args.time,
               .partition = args.partition,
               .command = {this_program()},
               .uses_srun = !args.with_mpirun};
  if (args.with_mpirun) {
    job.command.emplace_back("launch");
    if (!args.interface.empty()) job.command.insert(job.command.end(), {"--interface", args.interface});
    job.command.insert(job.command.end(), train.begin() + 1, train.end());
  } else {
    job.command.insert(job.command.end(), train.begin(), train.end());
  }
  const std::string script = sbatch_script(job);
  const std::string text = args.submit ? submit_to_slurm(script) : script;
  std::fputs(text.c_str(), stdout);
  return 0;
}

int run_launch(LaunchArguments args) {
  const Config config = load_config(real_file_system(), args.config, args.overrides);
  const int64_t dp = config.parallel.dp;
  const std::string run_dir = args.out.empty() ? default_run_dir(args.config) : args.out;
  check_ranks(args, dp);
  if (args.slurm || args.submit) return run_on_slurm(std::move(args), run_dir, dp);
  refuse_alone(args.nodes != 0, "--nodes");
  refuse_alone(args.ranks_per_node != 0, "--ranks-per-node");
  refuse_alone(!args.time.empty(), "--time");
  refuse_alone(!args.partition.empty(), "--partition");
  refuse_alone(args.with_mpirun, "--with-mpirun");
  if (!is_mpi_built()) {
    fail(ErrorKind::kDevice, {.what = "this octet was built without MPI and runs one rank",
                              .where = this_program(),
                              .why = "ranks talk over MPI",
                              .fix = "install libopenmpi-dev and openmpi-bin, and build again; or octet train"});
  }
  if (is_mpi_rank()) {
    fail(ErrorKind::kArgument, {.what = "octet launch was started as a rank of a launch",
                                .where = "environment variable OMPI_COMM_WORLD_SIZE or PMIX_RANK",
                                .why = "each rank would start all ranks once more",
                                .fix = "start it by itself, or octet train as the ranks"});
  }
  LaunchPlan plan{.program = this_program(),
                  .args = train_words(args, run_dir),
                  .ranks = dp,
                  .agent = args.agent,
                  .interface = args.interface,
                  .run_dir = run_dir,
                  .version = "octet " OCTET_VERSION " "};
  if (!args.hosts.empty()) plan.hosts = parse_hosts(args.hosts);
  return launch(plan);
}

}  // namespace

void add_launch_command(CommandLine& line) {
  auto args = std::make_shared<LaunchArguments>();
  Command command = line.subcommand("launch", "Train on many ranks: here, on several hosts, or as a job of Slurm");
  command.option("config", &args->config, "The run: a YAML file (docs/configuration.md)").required();
  command
      .option("-n,--ranks", &args->ranks,
              "Ranks; must be parallel.dp of the run, which is what it is where it is left out")
      .range(int64_t(1), int64_t(1) << 20);
  add_set_option(command, &args->overrides);
  command.option("--out", &args->out, "Run directory; runs/<name of the config> where it is left out").type_name("DIR");
  command.option("--hosts", &args->hosts, "Hosts and how many ranks each has room for: node1:4,node2:4")
      .type_name("HOST:RANKS,...");
  command
      .option("--agent", &args->agent,
              "What starts a command on a host, in place of ssh; run as COMMAND HOST WORDS-FOR-A-SHELL")
      .type_name("COMMAND");
  command.option("--interface", &args->interface,
                 "The network between the hosts, where they have several: eth1, or 10.0.0.0/8");
  command.flag("--slurm", &args->slurm, "Print a batch script for Slurm instead");
  command.flag("--submit", &args->submit, "Give that script to sbatch");
  command.option("--nodes", &args->nodes, "Slurm: nodes; 1 where it is left out").range(int64_t(1), int64_t(1) << 20);
  command.option("--ranks-per-node", &args->ranks_per_node, "Slurm: ranks on each node")
      .range(int64_t(1), int64_t(1) << 20);
  command.option("--time", &args->time, "Slurm: time limit, 12:00:00");
  command.option("--partition", &args->partition, "Slurm: partition");
  command.flag("--with-mpirun", &args->with_mpirun, "Slurm: start ranks by mpirun, where srun has no PMIx");
  command.footer(
      "Starts octet train as every rank, with Open MPI. Rank 0 has the terminal; every rank has a log file,\n"
      "<run directory>/logs/rank-000.log and so on.\n"
      "Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 makes all ranks save and exits with code 75; the same command goes on\n"
      "from there. A second Ctrl-C stops at once, with 130. Other codes are those of the ranks (octet help train);\n"
      "7 also where a rank was killed or a host is lost.\n"
      "\n"
      "Examples:\n"
      "  octet launch -n 2 configs/quickstart.yaml --set parallel.dp=2\n"
      "  octet launch configs/moe_8.yaml --hosts node1:4,node2:4 --interface eth1\n"
      "  octet launch configs/moe_8.yaml --slurm --nodes 2 --time 12:00:00 > job.sh\n"
      "  octet launch configs/moe_8.yaml --submit --nodes 2 --partition long");
  command.run([args] { return run_launch(*args); });
}

}  // namespace octet
