"""Fixtures of whole runs of the job, as the tests of `train_like` have them."""

from tests.train_like.conftest import clean_store as clean_store
from tests.train_like.conftest import command as command
from tests.train_like.conftest import job_checkpoint as job_checkpoint
from tests.train_like.conftest import job_config as job_config
from tests.train_like.conftest import job_model as job_model
from tests.train_like.conftest import job_shards as job_shards
from tests.train_like.conftest import one_thread as one_thread
from tests.train_like.conftest import other_checkpoint as other_checkpoint
from tests.train_like.conftest import write_config as write_config
