// The subcommands of octet. Each add_X_command adds one: its options, its help and what it runs.
#pragma once

#include <string>

#include "core/base/device.h"
#include "tools/commands/command_line.h"

namespace octet {

void add_prepare_command(CommandLine& line);
void add_check_command(CommandLine& line);
void add_train_command(CommandLine& line);
void add_launch_command(CommandLine& line);
void add_verify_command(CommandLine& line);
void add_eval_command(CommandLine& line);
void add_sample_command(CommandLine& line);
void add_ckpt_command(CommandLine& line);
void add_report_command(CommandLine& line);
void add_bench_command(CommandLine& line);
void add_doctor_command(CommandLine& line);
void add_docs_command(CommandLine& line);
void add_help_command(CommandLine& line);

// "runs/tiny" for configs/tiny.yaml.
std::string default_run_dir(const std::string& config_path);

// --set of a command that reads a configuration.
void add_set_option(Command& command, std::vector<std::string>* overrides);

// --device of a command that reads a trained model; and what it says.
void add_device_option(Command& command, std::string* device);
DeviceType device_type(const std::string& name);

// "octet 0.1.0 (avx2 kernels, 2 threads, CUDA 13.0)"
std::string version_text();

}  // namespace octet
