// Saves checkpoints so that there is always a good one, and finds it again.
//
// A save writes everything into .step-N.tmp-RUN, syncs each file, writes and syncs manifest.json last, reads all of it
// back, syncs the directory, renames it to step-N, and syncs the parent. The renaming is the one moment at which the
// checkpoint comes to be: a process that dies or a machine that stops at any other leaves the older checkpoints as they
// were and a leftover that clean_up_checkpoints removes. Where a file system renames directories in parts, the manifest
// that is written last has the same effect: a directory without one is no checkpoint.
//
// Many ranks. The forms with a communicator are called by all of its ranks, which share the directory; the forms
// without one are those of one rank. Each rank writes and syncs shards of its own, rank 0 all else; each rank reads
// back what others wrote; rank 0 renames. An error of one rank is thrown by all. Where ranks are lost in the midst of
// it, the others throw what the communicator throws and remove nothing, since some may still be writing: the next start
// cleans up. Ranks that write or read call Communicator::progress at every 64 KiB.
//
// All functions but verify and list must be called by the holder of the run's lock (run_lock.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/file_system.h"
#include "parallel/communicator.h"
#include "tools/train/checkpoint_manifest.h"
#include "tools/train/checkpoint_reader.h"

namespace octet {

// What to save of one tensor. Names are unique over all groups: the master copy of a weight needs a name of its own.
struct TensorPiece {
  std::string name;
  TensorGroup group = TensorGroup::kModel;
  StoredDType dtype = StoredDType::kF32;
  Shape shape;                 // of the whole tensor, no size 0
  const void* data = nullptr;  // the box's elements, rows contiguous
  std::optional<Box> box;      // the part that `data` holds; the whole tensor without one
};

struct TextFile {
  std::string name;  // config.yaml, tokenizer.json
  std::string content;
};

struct SaveOptions {
  uint64_t shard_bytes = uint64_t(4) << 30;  // a safetensors file begins anew where it would grow beyond this
};

// Saves to directory/step-N and returns that path. The directory is made where there is none. Throws kStorage when it
// cannot: then nothing of this save remains, what was there before is untouched, and the message has the bytes needed
// and free. Throws kArgument for pieces that make no checkpoint.
std::string save_checkpoint(FileSystem& fs, const std::string& directory, const CheckpointInfo& info,
                            const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files,
                            const SaveOptions& options = {});
// The run, the step and the directory are the same on all ranks; what else `info` has, and the text files, are those of
// rank 0. Each rank gives pieces of its own, and all of them together tile each tensor.
std::string save_checkpoint(FileSystem& fs, const std::string& directory, const CheckpointInfo& info,
                            const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files,
                            const SaveOptions& options, Communicator& world);

// Makes the directory where there is none, and throws kStorage where a rank sees another one than rank 0 does: a host
// that has not mounted what the ranks share.
void require_shared_directory(FileSystem& fs, const std::string& directory, Communicator& world);

// About how many bytes save_checkpoint would write.
uint64_t checkpoint_bytes(const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files);
// Throws kStorage where the file system of the directory, or of the nearest parent that exists, has fewer bytes free.
void require_free_bytes(FileSystem& fs, const std::string& directory, uint64_t bytes);

struct CheckpointEntry {
  std::string path;
  int64_t step = 0;
};
// The step-N directories that have a manifest, oldest first. None where the directory does not exist.
std::vector<CheckpointEntry> list_checkpoints(FileSystem& fs, const std::string& directory);

// The newest checkpoint of which every byte is right; none where there is none at all. Each damaged one that is newer
// is renamed to bad-step-N with the reason in reason.txt, so that its step can be saved again. Throws kCheckpoint where
// there are checkpoints and none is good.
std::optional<CheckpointEntry> find_newest_good_checkpoint(FileSystem& fs, const std::string& directory);
// The same answer on every rank; after require_shared_directory.
std::optional<CheckpointEntry> find_newest_good_checkpoint(FileSystem& fs, const std::string& directory,
                                                           Communicator& world);

// Removes what killed saves and removals left: .step-N.tmp-RUN, .trash-N, step-N without a manifest.
void clean_up_checkpoints(FileSystem& fs, const std::string& directory);

// Removes all but the newest `keep_last` checkpoints (0 keeps all), after it has read the newest and found it good;
// where it is not, removes none. Returns how many were removed. One that cannot be removed is a warning: the save it
// follows is done all the same.
int remove_old_checkpoints(FileSystem& fs, const std::string& directory, int64_t keep_last);
int remove_old_checkpoints(FileSystem& fs, const std::string& directory, int64_t keep_last, Communicator& world);

}  // namespace octet
