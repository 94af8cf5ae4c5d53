# %% [markdown]
# # From a file of interactions to recommendations
#
# Train a model, serve it, record what users did, ask what they may want next. Run it cell by cell (Jupyter with
# jupytext, VS Code), or as a script from the root of the repository:
#
#     deploy/build.sh tim4rec tim4rec-server
#     pip install './proto/python[pandas]'
#     python proto/python/examples/quickstart.py
#
# TIM4REC_BUILD names another build folder than build/release, TIM4REC_TRAIN_FLAGS goes to `tim4rec train`.

# %%
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

import pandas as pd

from tim4rec import Client, Query, frames

build = pathlib.Path(os.environ.get("TIM4REC_BUILD", "build/release")).resolve()
work = pathlib.Path(tempfile.mkdtemp(prefix="tim4rec_quickstart_"))

# %% [markdown]
# ## Data
#
# A synthetic file with structure in time. Your own goes the same way: a RecBole `.inter` file, or a CSV with user,
# item and time columns.

# %%
root = pathlib.Path(__file__).resolve().parents[3]
subprocess.run([sys.executable, root / "deploy" / "synthesize.py", work / "events.inter", "--users", "200"], check=True)
events = pd.read_csv(work / "events.inter", sep="\t", dtype={"user_id:token": str, "item_id:token": str})
events.columns = ["user_id", "item_id", "seconds"]
events["timestamp_ms"] = events.seconds * 1000
print(events.groupby("user_id").size().describe())

# %% [markdown]
# ## Train

# %%
subprocess.run([build / "bin" / "tim4rec", "train", work / "events.inter", "--out", work / "model",
                *shlex.split(os.environ.get("TIM4REC_TRAIN_FLAGS", ""))], check=True)

# %% [markdown]
# ## Serve
#
# Port 0 is any free one; the server prints which.

# %%
server = subprocess.Popen([build / "bin" / "tim4rec-server", "--model", work / "model", "--data", work / "data",
                           "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
                           "--metrics-listen", "127.0.0.1:0"],
                          stdout=subprocess.PIPE, stderr=(work / "server.log").open("w"), text=True)
assert server.stdout is not None
address = ""
for line in server.stdout:
    if line.startswith("listening on "):
        address = line.split()[-1]
        break
print("the server answers on", address or f"nothing: see {work / 'server.log'}")
client = Client(address)

# %% [markdown]
# ## Record
#
# All but each user's last interaction, in a stream of batches. Run the cell again: everything is a duplicate then,
# and nothing changes.

# %%
last = events.groupby("user_id").tail(1)
history = events.drop(last.index)
acks = []
with client.stream(durable=True) as stream:
    for batch in frames.batches(history):
        acks += stream.send(batch)
    acks += stream.flush()
print(f"{sum(a.applied + a.late_refolded for a in acks)} stored, {sum(a.duplicates for a in acks)} were there before, "
      f"{sum(a.unknown_items for a in acks)} of unknown items")

# %% [markdown]
# ## Recommend
#
# At the moment of each held-out interaction: how often is it among the ten best?

# %%
asked = [(row.user_id, client.recommend(row.user_id, Query(k=10, as_of_ms=row.timestamp_ms, exclude_seen=False)))
         for row in last.itertuples()]
answers = frames.to_pandas(asked)
hits = answers.merge(last, on=["user_id", "item_id"])
print(f"{len(hits)} of {len(last)} held-out interactions were among the ten recommended")
print(answers.head(10).to_string(index=False))

# %% [markdown]
# The same user an hour and a month after the last interaction: time passing changes the answer.

# %%
user, then = last.user_id.iloc[0], int(last.timestamp_ms.iloc[0])
for label, gap_ms in (("an hour later", 3_600_000), ("a month later", 30 * 86_400_000)):
    print(f"{label:>15}:", client.recommend(user, Query(k=5, as_of_ms=then + gap_ms)).item_ids)

# %%
client.close()
server.terminate()
assert server.wait() == 0
