-- When a batch was retired: its results are gone and nobody is shown it any more.

ALTER TABLE job ADD COLUMN retired_at bigint;
