// Makes a dataset from text: finds the documents, trains or loads a tokenizer, decides which documents are for
// validation, and writes the tokens in shards.
//
// Everything is read twice: first to count words and to see all documents, then to tokenize them. The result is a pure
// function of the texts, their order, and the options; not of the number of threads.
//
// Validation: document i is for validation where u(hash of its text) < val_fraction, u uniform under the seed; so equal
// documents go to one side, and a document stays on its side when others are added. Where that gives one of the sides
// no document, the document with the smallest (largest) u goes there; an only document is cut in two at a line end.
//
// The dataset is written beside the output as OUTPUT.partial and renamed when all of it is on the disk.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/base/clock.h"
#include "core/base/file_system.h"
#include "core/base/thread_pool.h"
#include "tools/data/dataset.h"
#include "tools/data/document_source.h"

namespace octet {

struct PrepareOptions {
  SourceOptions source;
  std::string output;
  int64_t vocab_size = 8192;   // of a new tokenizer
  std::string tokenizer_path;  // of a tokenizer.json; empty: train one
  std::string eos_token;       // of that tokenizer; empty: the one it knows
  double val_fraction = 0.05;  // of the documents
  uint64_t seed = 1;
  bool overwrite = false;                     // a dataset that is there already
  uint64_t shard_tokens = uint64_t(1) << 25;  // a shard ends with the document that reaches them
  uint64_t train_bytes = uint64_t(1) << 29;   // of text to train a tokenizer on: more documents are sampled
  void validate() const;
};

struct PrepareProgress {
  const char* stage;  // "reading", "training the tokenizer", "tokenizing"
  double done;        // 0 to 1
};

struct PrepareSummary {
  DatasetInfo dataset;
  SourceCounts counts;
  double seconds = 0, encode_seconds = 0;
  double encoded_megabytes_per_second() const {
    return double(dataset.train.text_bytes + dataset.val.text_bytes) / 1e6 / encode_seconds;
  }
};

// Errors: kData for the texts and the tokenizer, kArgument for the options, kStorage for the disk. After an error the
// output is as it was before.
PrepareSummary prepare_dataset(const PrepareOptions& options, FileSystem& files, Clock& clock, ThreadPool& pool,
                               const std::function<void(const PrepareProgress&)>& progress = {});

}  // namespace octet
