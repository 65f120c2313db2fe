"""What responses are worth: settings of each kind of reward, a file a family; `kinds` has them all."""
