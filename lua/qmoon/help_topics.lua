--- The twelve things that `?` lists.  `see` names public functions, whose first sentences follow the text.

return {
    { name = "tensors", about = "making tensors and looking at them",
      text = [[
A tensor is values with a shape and a format; it is never changed, every method gives a new one.  Rows and columns count
from 1.  Typing its name shows shape, memory, range, mean, deviation and the shape of its distribution.]],
      see = { "qm.tensor", "qm.randn", "qm.uniform", "qm.student_t", "qm.read", "t:stats", "t:show", "t:slice", "t:histogram" } },
    { name = "formats", about = "the number formats there are, and what their names mean",
      text = [[
"nf4" is a format, "nf4:128" the same with blocks of 128 values, "nf4:dq" with its scales quantised again,
"int4:row" with one scale a row.  ?nf4 tells about one of them; bits per weight always count the scales.]],
      see = { "qm.formats", "t:quantize" } },
    { name = "quantize", about = "quantising a tensor, its codes and scales, and back",
      text = [[
q = t:quantize "nf4" holds codes and scales as the file formats have them, byte for byte.]],
      see = { "t:quantize", "t:dequantize", "t:codes", "t:scales", "t:info" } },
    { name = "compare", about = "formats beside each other on one tensor, and sweeps",
      text = [[
SQNR is the signal's power over the error's, in dB: 6 dB more is half the error.]],
      see = { "qm.compare", "qm.sweep", "r:worst" } },
    { name = "error", about = "how far two tensors are apart: in all, by row, column or block",
      text = [[
rmse, mse, max (largest single error), sqnr in dB, cosine, and bias (the mean error).]],
      see = { "qm.error", "qm.error_by" } },
    { name = "models", about = "opening a checkpoint folder, a GGUF file or a single file",
      text = [[
Opening reads headers only.  m:tensor(name) is a view of the file; Tab completes the name.]],
      see = { "qm.open", "m:tensor", "m:tensors", "m:merge", "m:size" } },
    { name = "report", about = "the error of a format over a whole model, the worst tensors first",
      text = [[
The model is streamed in chunks: memory does not grow with it.]],
      see = { "m:report", "m:compare", "r:worst", "r:where" } },
    { name = "codebooks", about = "formats of your own: levels, fitted levels, two functions",
      text = [[
Wherever a format's name goes, such a value goes, too, or the name that it was given.]],
      see = { "qm.codebook", "qm.kmeans", "qm.quantile_codebook", "qm.format" } },
    { name = "arithmetic", about = "enough to follow a paper: products, sums, norms, singular values",
      text = [[
All arithmetic decodes to f32 first and gives f32.]],
      see = { "t:matmul", "t:add", "t:sub", "t:mul", "t:scale", "t:transpose", "t:norm", "t:norms", "t:svd" } },
    { name = "results", about = "tables: sorting them, and CSV, JSON, Markdown of them",
      text = [[
r[1].sqnr is a figure of the first row.  :mode csv shows every table as CSV, and so on.  r:plot() draws a result;
qm.plot has more pictures (print(qm.plot)), and qmoon demo lessons with them.]],
      see = { "r:plot", "qm.plot.rulers", "p:save", "r:sort", "r:worst", "r:best", "r:where", "r:column", "r:columns", "r:save", "r:csv", "r:json", "r:markdown" } },
    { name = "writing", about = "quantised models as files, as bitsandbytes and llama.cpp have them",
      text = [[
One pass over the source writes any number of outputs; what a plan says of their sizes is exact.  The same from a shell:
qmoon quantize, qmoon merge, qmoon pipeline; each has --help.]],
      see = { "qm.write", "qm.plan", "m:merge" } },
    { name = "session", about = "keys, history, and the commands that begin with ':'", commands = true,
      text = [[
_ is the last value, _1, _2 … those shown so far.  A ';' at the end shows nothing.  Tab completes, up and down
search for what is typed so far, ^R searches, ^C stops what runs or empties the line, ^D on an empty line leaves.
!command runs a shell command.  ?name explains, ??name shows the source.]],
      see = {} },
}
