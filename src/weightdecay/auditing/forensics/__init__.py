"""What a finished checkpoint says of the decay that it had, and how sure that is.

In come a checkpoint of any kind, and what its reader knows besides (the start, the tokens, the first standard
deviation); out come answers, each an interval with where it comes from, or the reason why it cannot be told.

    examining.py   `forensics`: opens, measures, asks; read this one first
    stored.py      weights as they lie in files, whoever wrote them, read one tensor at a time
    pickled.py     the same of `torch.save`
    parts.py       which tensor is the embedding, the head, a gain, a matrix; whether the head is tied
    tokens.py      which tokens came, from shards, arrays or text
    idle_rows.py   which rows nothing but decay has touched, and how that is known
    apart.py       the same from the weights alone: rows that still are draws of one normal distribution
    shrinking.py   Σ ln(1 − a_t) from those rows
    vectors.py     which gains and biases were exempt
    initialisation.py  the embedding's standard deviation at the start, by whoever says so
    losing.py      where decay was lost to the dtype
    balance.py     η/λ from the norms of matrices
    answers.py     an answer, and the report, as values
    rendering.py   the report in words and as a document
"""
