<#
.SYNOPSIS
Builds voxtral on Windows: finds the Visual C++ compiler and CUDA, then runs cargo.

.DESCRIPTION
Needs Rust with the MSVC toolchain and Visual Studio (or its Build Tools) with "Desktop development with C++". With the CUDA
Toolkit 13 the program contains the GPU code; without it, it runs on the CPU.

.EXAMPLE
scripts\build.ps1
scripts\build.ps1 -RequireCuda -CudaArch 86,89
#>
[CmdletBinding()]
param(
    # A missing CUDA Toolkit is an error.
    [switch]$RequireCuda,
    # Compute capabilities to compile for; all supported ones unless given.
    [string[]]$CudaArch = @(),
    # Build without optimisation.
    [switch]$Unoptimised
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$root = Split-Path -Parent $PSScriptRoot

# nvcc calls cl.exe, which has to be on PATH: take the environment of the newest Visual Studio.
function Import-VisualStudio {
    if (Get-Command cl.exe -ErrorAction SilentlyContinue) { return $true }
    $vswhere = Join-Path ${env:ProgramFiles(x86)} 'Microsoft Visual Studio\Installer\vswhere.exe'
    if (-not (Test-Path -LiteralPath $vswhere)) { return $false }
    $component = 'Microsoft.VisualStudio.Component.VC.Tools.x86.x64'
    $install = & $vswhere -latest -products * -requires $component -property installationPath
    if (-not $install) { return $false }
    $script = Join-Path $install 'VC\Auxiliary\Build\vcvars64.bat'
    foreach ($line in (& $env:ComSpec /s /c "`"$script`" >nul && set")) {
        $name, $value = $line -split '=', 2
        if ($name -and $null -ne $value) { Set-Item -LiteralPath "Env:$name" -Value $value }
    }
    return [bool](Get-Command cl.exe -ErrorAction SilentlyContinue)
}

# The folder of the newest CUDA Toolkit, or nothing.
function Find-Cuda {
    $places = @($env:CUDA_PATH, $env:CUDA_HOME)
    $installed = Join-Path $env:ProgramFiles 'NVIDIA GPU Computing Toolkit\CUDA'
    if (Test-Path -LiteralPath $installed) {
        $places += Get-ChildItem -LiteralPath $installed -Directory -Filter 'v*' |
            Sort-Object { [version]$_.Name.TrimStart('v') } -Descending | ForEach-Object FullName
    }
    foreach ($place in $places) {
        if ($place -and (Test-Path -LiteralPath (Join-Path $place 'bin\nvcc.exe'))) { return $place }
    }
}

if (-not (Get-Command cargo.exe -ErrorAction SilentlyContinue)) { throw 'cargo was not found: install Rust from rustup.rs' }
if (-not (Import-VisualStudio)) {
    throw 'Visual C++ was not found: install the Build Tools with "Desktop development with C++"'
}
$cuda = Find-Cuda
if ($cuda) {
    Write-Output "CUDA: $cuda"
    $env:CUDA_PATH = $cuda
}
elseif ($RequireCuda) { throw 'the CUDA Toolkit was not found; CUDA_PATH may name it' }
else { Write-Warning 'the CUDA Toolkit was not found: building for the CPU only' }
if ($CudaArch) { $env:VOX_CUDA_ARCH = $CudaArch -join ',' }

$arguments = @('build', '--locked', '--manifest-path', (Join-Path $root 'Cargo.toml'))
if (-not $Unoptimised) { $arguments += '--release' }
if ($RequireCuda) { $arguments += '--features', 'cuda' }
& cargo.exe @arguments
if ($LASTEXITCODE -ne 0) { throw "cargo ended with status $LASTEXITCODE" }
$kind = if ($Unoptimised) { 'debug' } else { 'release' }
Write-Output (Join-Path $root "target\$kind\voxtral.exe")
