// The subcommands of octet. Each add_X_command registers one: its options, its help and a callback, which sets
// exit_code or throws an Error.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

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
void add_docs_command(CLI::App& app, int& exit_code);
void add_help_command(CLI::App& app, int& exit_code);

// "runs/tiny" for configs/tiny.yaml.
std::string default_run_dir(const std::string& config_path);

// "octet 0.1.0 (avx2, 2 threads, no CUDA)"
std::string version_text();

}  // namespace octet
