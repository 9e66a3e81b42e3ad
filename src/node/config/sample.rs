/// A commented configuration with every key: `lockstep config example` prints it.
pub const SAMPLE: &str = include_str!("sample.toml");
