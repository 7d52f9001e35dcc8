//! `run --redirect`: the wrapper sets the rules, and its application is redirected.

use weft::launch::wait_for;

use super::*;

/// The sidecar is told from its application by its user, and where both are root by its mark alone.
#[tokio::test]
async fn the_wrapper_sets_the_rules_and_the_application_cannot() -> Result<()> {
    let Some(net) = Net::new("rules set by the wrapper")? else { return Ok(()) };
    let (control, job) = (net.host("control")?, net.host("job")?);
    let mut servers = Servers::default();
    servers.tcp(&control, at(control.v4, 99), "outside").await?;
    let (folder, program) = (tempfile::tempdir()?, program()?);
    let (grpc, http, address) =
        (at(control.v4, 15010).to_string(), at(control.v4, 15080).to_string(), control.v4.to_string());
    let data = folder.path().join("control-plane").display().to_string();
    let args = ["control-plane", "--data-dir", &data, "--grpc", &grpc, "--http", &http, "--advertise", &address];
    let _control_plane = control.start("control-plane", &program, folder.path(), &args, &[])?;
    let credential = folder.path().join("control-plane/operator.json");
    let token = wait_for("a join token", PATIENCE * 4, async || {
        let mut command = control.command(&program);
        command.args(["token", "create", "--service", "job"]).env("WEFT_CREDENTIAL", &credential);
        let output = tokio::process::Command::from(command).output().await.ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    });
    let token = token.await?;
    let script = format!("nft list ruleset >/dev/null 2>&1 && exit 3; cat </dev/tcp/{}/99 && exit 7", control.v4);
    for (index, user) in ["1234", "0"].into_iter().enumerate() {
        let data = folder.path().join("job").display().to_string();
        let flags = ["sidecar", "--control-plane", &grpc, "--service", "job", "--data-dir", &data];
        let run = ["--access-log", "all", "run", "--redirect", "--app-user", user, "--", "bash", "-c", &script];
        let token = if index == 0 { vec![("WEFT_JOIN_TOKEN", token.clone())] } else { Vec::new() };
        let mut wrapper =
            job.start(&format!("job-{user}"), &program, folder.path(), &[&flags[..], &run].concat(), &token)?;
        let status = wrapper.ended(PATIENCE * 4).await?;
        let log = wrapper.log();
        ensure!(status.code() == Some(7), "{user}: {status}: {log}");
        ensure!(!log.contains("not captured"), "{user}: the rules are there before it looks for them: {log}");
        ensure!(log.contains("outside"), "{user}: {log}");
        ensure!(log.contains("\"destination\":\"external\""), "{user}: it came by the sidecar: {log}");
        ensure!(ruleset(&job)?.contains("meta skuid 0 return") == (user != "0"), "{user}: {}", ruleset(&job)?);
    }
    Ok(())
}
