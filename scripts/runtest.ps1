<#
.SYNOPSIS
Quick check of a fresh build: whole files, small intervals, pipes and several files must give the same text.

.EXAMPLE
scripts\runtest.ps1
scripts\runtest.ps1 -Model voxtral-model -Audio talk.mp3 -Options '--device', 'cuda'
#>
[CmdletBinding()]
param(
    [string]$Program = (Join-Path (Split-Path -Parent $PSScriptRoot) 'target\release\voxtral.exe'),
    [string]$Model = (Join-Path (Split-Path -Parent $PSScriptRoot) 'samples\tiny-model'),
    [string[]]$Audio = @(),
    [string[]]$Options = @()
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
[Console]::OutputEncoding = [System.Text.Encoding]::UTF8
if (-not (Test-Path -LiteralPath $Program)) { throw "$Program is not there: scripts\build.ps1 makes it" }
if (-not $Audio) {
    $samples = Join-Path (Split-Path -Parent $PSScriptRoot) 'samples'
    $Audio = 'hibari_intro', 'kal_computer', 'espeak_us_garden' | ForEach-Object { Join-Path $samples "$_.wav" }
}

$script:failures = 0

function Invoke-Voxtral([string[]]$Arguments) {
    $text = & $Program -d $Model --silent @Options @Arguments
    return @{ Text = ($text -join "`n"); Status = $LASTEXITCODE }
}

function Assert-Same([string]$Name, [string]$Expected, [string]$Got) {
    if ($Expected -ceq $Got) { Write-Output "ok    $Name"; return }
    Write-Output "FAIL  $Name"
    Write-Output "      expected: $Expected"
    Write-Output "      got:      $Got"
    $script:failures++
}

$alone = @()
foreach ($file in $Audio) {
    $name = Split-Path -Leaf $file
    $whole = Invoke-Voxtral @($file)
    $alone += $whole.Text
    Assert-Same "${name}: exit status" '0' "$($whole.Status)"
    foreach ($interval in '0.08', '0.5', '60') {
        Assert-Same "${name}: -I $interval" $whole.Text (Invoke-Voxtral @('-I', $interval, $file)).Text
    }
    # PowerShell's own pipes change bytes: cmd passes the file on.
    $line = "`"`"$Program`" -d `"$Model`" --silent $($Options -join ' ') --stdin < `"$file`"`""
    Assert-Same "${name}: from a pipe" $whole.Text ((& $env:ComSpec /s /c $line) -join "`n")
}
Assert-Same "$($Audio.Count) files in one run" ($alone -join "`n") (Invoke-Voxtral $Audio).Text

$ErrorActionPreference = 'Continue'
$missing = & $Program -d $Model --silent (Join-Path ([IO.Path]::GetTempPath()) 'voxtral-missing.wav') 2>$null
Assert-Same 'a missing file ends with status 1' '1' "$LASTEXITCODE"
Assert-Same 'a missing file gives no text' '' "$missing"

if ($script:failures) {
    Write-Output "$script:failures failed"
    exit 1
}
Write-Output 'all well'
