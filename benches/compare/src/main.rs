//! Prints one table and draws one chart: oncekey, the ideal log, five embedded engines, two servers. See `README.md`.

fn main() -> anyhow::Result<()> {
    oncekey_compare::compare::main()
}
