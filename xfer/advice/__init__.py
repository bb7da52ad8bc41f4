"""Which strategy to try first for a data set, and the measurements that the advice rests on."""
