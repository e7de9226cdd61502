"""Data in three nouns.

A **reader** (:mod:`fcit.data.formats`) makes records of an instruction file, in whatever format it is. The **record
store** (:mod:`fcit.data.store`) keeps the records of large files memory-mapped. A **benchmark**
(:mod:`fcit.data.benchmark`) is bound to its data: it knows stages, every client's records, and the test questions; a
run sees it, or the sites' own tasks, as a **stream** (:mod:`fcit.data.stream`).

From a file to a batch: ``formats/`` (``files`` reads rows, ``llava`` and others say what a row means, ``conversation``
cleans texts), ``store``, ``partition`` (records divided over clients), ``usable`` (records that can be used),
``prompts`` (the text a model reads), ``collate`` (padded batches of tokens). Beside them: ``images/`` opens images,
``checks/`` reads everything before a run or for ``fcit data check``, ``fingerprints/`` says what a run rests on,
``mini/`` renders the built-in data sets, ``benchmarks/`` holds the shipped benchmark files.
"""
