//! The tests that need a real cluster and a real proxy, by subject.
