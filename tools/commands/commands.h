// The subcommands of octet. Each add_X_command registers one: its options, its help and a callback, which sets
// exit_code or throws an Error.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/base/device.h"

namespace octet {

void add_prepare_command(CLI::App& app, int& exit_code);
void add_check_command(CLI::App& app, int& exit_code);
void add_train_command(CLI::App& app, int& exit_code);
void add_launch_command(CLI::App& app, int& exit_code);
void add_verify_command(CLI::App& app, int& exit_code);
void add_eval_command(CLI::App& app, int& exit_code);
void add_sample_command(CLI::App& app, int& exit_code);
void add_ckpt_command(CLI::App& app, int& exit_code);
void add_report_command(CLI::App& app, int& exit_code);
void add_bench_command(CLI::App& app, int& exit_code);
void add_doctor_command(CLI::App& app, int& exit_code);
void add_docs_command(CLI::App& app, int& exit_code);
void add_help_command(CLI::App& app, int& exit_code);

// "runs/tiny" for configs/tiny.yaml.
std::string default_run_dir(const std::string& config_path);

// --device of a command that reads a trained model; and what it says.
void add_device_option(CLI::App& command, std::string& device);
DeviceType device_type(const std::string& name);

// "octet 0.1.0 (avx2 kernels, 2 threads, CUDA 13.0)"
std::string version_text();

}  // namespace octet
