//! Measures speed, disk space and memory by number of live keys. See `README.md`.

fn main() -> anyhow::Result<()> {
    oncekey_compare::scale::main()
}
