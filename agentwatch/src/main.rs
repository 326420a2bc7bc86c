fn main() -> anyhow::Result<()> {
    let rt = tokio::runtime::Runtime::new()?;
    let _g = rt.enter();
    let (k, _r) = agentwatch::kernel::Kernel::load()?;
    println!("{:#?} {:#?}", k.checks, k.verified());
    Ok(())
}
